"""The count of what a statement would give without its limit."""

from __future__ import annotations

from typing import Any

from transept.sql.statement import Notation

__all__ = ["without_limit"]


def without_limit(sql: str, arguments: Any, notation: Notation) -> tuple[str, Any] | None:
    raise NotImplementedError
