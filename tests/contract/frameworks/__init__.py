"""One module for each framework: how a case's handlers become an app, and how the app is called.

An app is called at the level of its protocol, with no client or server in between, so that the database can be looked
at in the moment each message is sent.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

Work = Callable[[Any], Awaitable[Any]]


@dataclass
class Answer:
    """What a case's handler answers."""

    status: int = 201
    body: bytes = b"ok"
    stream: Callable[[], AsyncIterator[bytes]] | None = None
    length: int | None = None
    background: Callable[[], Awaitable[None]] | None = None
    teardown: Callable[[], Awaitable[None]] | None = None
    messages: Callable[[], AsyncIterator[dict[str, Any]]] | None = None


@dataclass
class Told:
    """What the client was told, and what the database held at the moment each message was sent."""

    status: int | None = None
    body: bytes = b""
    complete: bool = False
    error: BaseException | None = None
    seen: list[tuple[str, list[int]]] = field(default_factory=list)

    def held_at_start(self) -> list[int]:
        return next(held for kind, held in self.seen if kind == "start")

    def held_at_end(self) -> list[int]:
        return self.seen[-1][1]
