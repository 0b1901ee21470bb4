"""How a call of plain code gets to the event loop of an async session."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol

from sqlalchemy.util import greenlet_spawn

from transept._portal import Bridge
from transept.errors import CommitInDoubt, LoopTimeout

__all__ = ["across", "run_across"]


class Crosses(Protocol):
    """What knows whether its session is also used by plain code."""

    @property
    def key(self) -> str: ...

    @property
    def bridge(self) -> Bridge | None: ...


def run_across(seat: Crosses, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    """Call this function: on the loop, if plain code asks for it, and the thread waits."""
    bridge = seat.bridge
    if bridge is None or not bridge.needed():
        return function(*arguments, **keywords)
    return bridge.run(greenlet_spawn(function, *arguments, **keywords), f"database {seat.key!r}")


def across(method: Callable[..., Any]) -> Callable[..., Any]:
    """This method, so called. Its object has the seat as `transept_seat`.

    A commit of which nothing is heard in time is in doubt.
    """
    commits = method.__name__ == "commit"

    @functools.wraps(method)
    def called(self: Any, *arguments: Any, **keywords: Any) -> Any:
        try:
            return run_across(self.transept_seat, method, self, *arguments, **keywords)
        except LoopTimeout as failure:
            if commits:
                raise CommitInDoubt(self.transept_seat.key) from failure
            raise

    return called
