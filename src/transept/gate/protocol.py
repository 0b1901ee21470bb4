"""ASGI's words, and where a gate leaves the units of a request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from transept.context import UnitScope

__all__ = ["SCOPE_KEY", "ASGIApp", "BeforeSend", "Message", "Receive", "Scope", "Send", "unit_scope"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]
BeforeSend = Callable[[Message, Scope], Awaitable[None]]

SCOPE_KEY = "transept.units"


def unit_scope(scope: Scope) -> UnitScope | None:
    """Where the units of this request are, if a gate stands around it."""
    found: UnitScope | None = scope.get(SCOPE_KEY)
    return found
