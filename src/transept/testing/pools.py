"""Connections that the code under test takes out of an engine's own pool, past the sandbox, and does not give back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Engine

from transept.testing.site import call_site

__all__ = ["PoolWatch"]

_ours: ContextVar[bool] = ContextVar("transept_sandbox_connects", default=False)


class PoolWatch:
    """Listens to the pools of engines as long as a sandbox lasts."""

    def __init__(self, database: str) -> None:
        self._database = database
        self._engines: set[Engine] = set()
        self._out: dict[Any, str] = {}

    def watch(self, engine: Engine) -> None:
        if engine not in self._engines:
            self._engines.add(engine)
            for name, listener in self._listeners().items():
                event.listen(engine, name, listener)

    def end(self) -> list[str]:
        """Stop listening. What is out, with the line that took it."""
        for engine in self._engines:
            for name, listener in self._listeners().items():
                event.remove(engine, name, listener)
        self._engines.clear()
        out, self._out = self._out, {}
        return [
            f"a connection of database {self._database!r} is out of its pool ({site or 'nobody knows who took it'})"
            for site in out.values()
        ]

    @staticmethod
    @contextmanager
    def connecting() -> Iterator[None]:
        """What is taken in this block is the sandbox's own."""
        token = _ours.set(True)
        try:
            yield
        finally:
            _ours.reset(token)

    def _listeners(self) -> dict[str, Any]:
        return {"checkout": self._taken, "checkin": self._given_back, "detach": self._given_back}

    def _taken(self, connection: Any, record: Any, proxy: Any) -> None:
        if not _ours.get():
            self._out[record] = call_site()

    def _given_back(self, connection: Any, record: Any) -> None:
        self._out.pop(record, None)
