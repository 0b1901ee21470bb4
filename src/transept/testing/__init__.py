"""Tests that share one database and leave nothing in it: see docs/how-to/testing.md."""

from transept.testing.errors import NestedInSandbox, SandboxBusy, SandboxError, SandboxLeak, SandboxLost
from transept.testing.sandbox import Connections, Sandbox, SandboxSession

__all__ = [
    "Connections",
    "NestedInSandbox",
    "Sandbox",
    "SandboxBusy",
    "SandboxError",
    "SandboxLeak",
    "SandboxLost",
    "SandboxSession",
]
