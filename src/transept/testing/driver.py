"""A driver's connection as the app may use it directly, from whatever loop, though it lives on another."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any

__all__ = ["DriverConnection"]


class DriverConnection:
    """Passes everything on; what its methods return to be awaited is awaited where the connection lives.

    What they return to be used so (a cursor, a transaction) is wrapped, too. `run` awaits what a function gives there.
    """

    def __init__(self, wrapped: Any, run: Callable[[Callable[[], Any]], Awaitable[Any]]) -> None:
        self._wrapped = wrapped
        self._run = run

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # what lies inside belongs to all
            raise AttributeError(name)
        value = getattr(self._wrapped, name)
        if not inspect.isroutine(value):
            return self._given(value)

        def called(*arguments: Any, **keywords: Any) -> Any:
            arguments = tuple(_bare(one) for one in arguments)
            if inspect.iscoroutinefunction(value):
                return self._awaited(lambda: value(*arguments, **keywords))
            return self._given(value(*arguments, **keywords))

        return called

    def __await__(self) -> Any:
        return self._awaited(lambda: _awaiting(self._wrapped)).__await__()

    async def __aenter__(self) -> Any:
        return await self._awaited(self._wrapped.__aenter__)

    async def __aexit__(self, *error: Any) -> Any:
        return await self._awaited(lambda: self._wrapped.__aexit__(*error))

    def __aiter__(self) -> DriverConnection:
        return DriverConnection(self._wrapped.__aiter__(), self._run)

    async def __anext__(self) -> Any:
        return await self._awaited(lambda: _awaiting(self._wrapped.__anext__()))

    async def _awaited(self, work: Callable[[], Any]) -> Any:
        return self._given(await self._run(work))

    def _given(self, value: Any) -> Any:
        has_io = any(hasattr(type(value), name) for name in ("__await__", "__aenter__", "__aiter__", "__anext__"))
        return DriverConnection(value, self._run) if has_io else value


async def _awaiting(awaitable: Any) -> Any:
    return await awaitable


def _bare(value: Any) -> Any:
    return value._wrapped if isinstance(value, DriverConnection) else value
