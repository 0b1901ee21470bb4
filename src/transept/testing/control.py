"""Statements by which an app begins and ends a transaction in SQL: in a sandbox they mean its part of one."""

from __future__ import annotations

import re

from transept.testing.errors import SandboxError

__all__ = ["control_word", "refuse_two_phase"]

CONTROL = re.compile(
    r"\s*(?:(?P<begin>begin(?:\s+(?:work|transaction|deferred|immediate|exclusive))*|start\s+transaction)"
    r"|(?P<commit>(?:commit|end)(?:\s+(?:work|transaction))?)"
    r"|(?P<rollback>(?:rollback|abort)(?:\s+(?:work|transaction))?)"
    r"|(?P<two_phase>(?:prepare\s+transaction|(?:commit|rollback)\s+prepared|xa\s).*))\s*;?\s*",
    re.IGNORECASE | re.DOTALL,
)


def control_word(sql: object) -> str | None:
    """``"begin"``, ``"commit"``, ``"rollback"`` or ``"two_phase"`` if this statement is one of a transaction's own."""
    found = CONTROL.fullmatch(sql) if isinstance(sql, str) and len(sql) < 200 else None
    return None if found is None else found.lastgroup


def refuse_two_phase() -> None:
    raise SandboxError("a sandbox cannot do a two-phase commit: test it with real ones.")
