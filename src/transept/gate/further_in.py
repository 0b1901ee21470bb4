"""Places further in than the gate, for frameworks whose routes lie behind what answers errors or rewrites bodies."""

from __future__ import annotations

from collections.abc import Awaitable

from transept.gate.asgi import Request, raised_from
from transept.gate.protocol import Message, Scope, Send, unit_scope
from transept.gate.websocket import Socket

__all__ = ["dropped_on_error", "raised_through", "settled_ahead"]


def settled_ahead(scope: Scope, send: Send) -> Send:
    """A `send` for a place further in than the gate: what stands between them never sees a start that failed."""
    request = unit_scope(scope)
    if not isinstance(request, Request):
        return send

    async def settled(message: Message) -> None:
        if message["type"] == "http.response.start":
            await request.settle_ahead(message)
        await send(message)

    return settled


async def raised_through(scope: Scope, app: Awaitable[None]) -> None:
    """Await an app that answers errors by itself, and raise what became of a failed start if it did not.

    Frameworks that believe the response to have started turn the error into one of their own.
    """
    request = unit_scope(scope)
    try:
        await app
    except Exception as error:
        failure = request.failed() if isinstance(request, Request) else None
        if failure is None or error is failure:
            raise
        raise raised_from(failure, error)[0] from error
    failure = request.failed() if isinstance(request, Request) else None
    if failure is not None:
        raise failure


async def dropped_on_error(scope: Scope, app: Awaitable[None]) -> None:
    """Await what serves a WebSocket; its error leaves nothing behind, whoever answers it further out."""
    try:
        await app
    except BaseException:
        socket = unit_scope(scope)
        if isinstance(socket, Socket):
            await socket.drop()
        raise
