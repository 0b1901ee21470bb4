"""Places further in than the gate, for frameworks whose routes lie behind what answers errors or rewrites bodies."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from transept.gate.asgi import Request, raised_from
from transept.gate.protocol import Scope, Send, unit_scope

__all__ = ["raised_through", "settled_ahead"]


def settled_ahead(scope: Scope, send: Send, failed: Callable[[Scope], None] | None = None) -> Send:
    """A `send` that settles here, if a gate stands around this request; `failed` hears of a start that was not sent."""
    request = unit_scope(scope)
    return request.settling(scope, send, failed) if isinstance(request, Request) else send


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
