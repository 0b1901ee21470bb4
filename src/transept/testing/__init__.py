"""Tests that share one database and leave nothing in it: see docs/how-to/testing.md."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transept.testing.errors import NestedInSandbox, SandboxBusy, SandboxError, SandboxLeak, SandboxLost
    from transept.testing.sandbox import Connections, Sandbox, SandboxSession
    from transept.testing.sessions import put_savepoint_session_in_ctx, rollback_session, set_test_context

__all__ = [
    "Connections",
    "NestedInSandbox",
    "Sandbox",
    "SandboxBusy",
    "SandboxError",
    "SandboxLeak",
    "SandboxLost",
    "SandboxSession",
    "put_savepoint_session_in_ctx",
    "rollback_session",
    "set_test_context",
]


def __getattr__(name: str) -> Any:
    """Imported when it is used: pytest loads the plugin beside this in every run."""
    if name in __all__:
        for module in ("errors", "sandbox", "sessions"):
            found = getattr(import_module(f"transept.testing.{module}"), name, None)
            if found is not None:
                return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
