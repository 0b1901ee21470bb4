"""Where the gate stands in a Litestar app: around the whole of it, and once more where a route answers.

Litestar answers errors outside of its middleware, and its middleware may open sessions (to know who asks), so the gate
is outermost. There is no place for that among Litestar's hooks but one that costs a request more than the gate itself:
an app's class is exchanged for a subclass of it whose `__call__` is the gate, and a route's for one whose `handle` lets
the gate settle before compression, caches and middleware have seen the start of the response.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from litestar import Litestar
from litestar.middleware._internal.exceptions import ExceptionHandlerMiddleware
from litestar.routes import ASGIRoute, HTTPRoute
from litestar.routes.base import BaseRoute
from litestar.types import Empty
from litestar.utils.scope.state import ScopeState

from transept.gate.asgi import ASGIGate
from transept.gate.further_in import raised_through, settled_ahead
from transept.gate.protocol import unit_scope
from transept.gate.websocket import Socket

__all__ = ["HOW_TO_GATE", "answer", "leave_nothing", "not_started", "settle_early", "stand_around"]

HOW_TO_GATE = "pass Transept(config) to Litestar(plugins=[...])"


def stand_around(app: Litestar, gate: ASGIGate) -> None:
    """Let the gate take the app's calls. The app keeps its type, seen from outside."""
    kind: Any = type(app)
    gate.app = partial(kind.__call__, app)
    names = {"__slots__": (), "__module__": kind.__module__, "__doc__": kind.__doc__, "__qualname__": kind.__qualname__}
    app.__class__ = type(kind.__name__, (kind,), {**names, "__call__": staticmethod(gate.__call__)})


def settle_early(app: Litestar, route: BaseRoute) -> None:
    """Settle where this route answers, if anything stands between it and the gate."""
    kinds: dict[Any, Any] = {ASGIRoute: SettledASGIRoute}
    if isinstance(route, HTTPRoute) and _is_covered(app, route):
        kinds[HTTPRoute] = SettledHTTPRoute
    changed: Any = route
    changed.__class__ = kinds.get(type(route), type(route))


def not_started(scope: Any) -> None:
    """Litestar answers no error once it has seen a response start; this one was never sent."""
    ScopeState.from_scope(scope).response_started = False


async def answer(scope: Any, receive: Any, send: Any, failure: Exception) -> bool:
    """Let Litestar answer this error, as it answers those of a handler."""
    if ScopeState.from_scope(scope).exception_handlers is Empty:
        return False

    async def fails(*_: Any) -> None:
        raise failure

    await ExceptionHandlerMiddleware(fails, None)(scope, receive, send)
    return True


async def leave_nothing(error: Exception, scope: Any) -> None:
    """Litestar answers the error of a WebSocket by closing it; what was not settled is rolled back before."""
    socket = unit_scope(scope)
    if isinstance(socket, Socket):
        await socket.drop()


class SettledHTTPRoute(HTTPRoute):
    """A route behind middleware: its errors, too, are answered where it is settled."""

    __slots__ = ()

    async def handle(self, scope: Any, receive: Any, send: Any) -> None:
        handle = super().handle

        async def handled(scope: Any, receive: Any, send: Any) -> None:
            await raised_through(scope, handle(scope, receive, send))

        await ExceptionHandlerMiddleware(handled, None)(scope, receive, _settled(scope, send))


class SettledASGIRoute(ASGIRoute):
    """A mounted app, which may answer errors by itself."""

    __slots__ = ()

    async def handle(self, scope: Any, receive: Any, send: Any) -> None:
        await raised_through(scope, super().handle(scope, receive, _settled(scope, send)))


def _settled(scope: Any, send: Any) -> Any:
    return settled_ahead(scope, send, not_started)


def _is_covered(app: Litestar, route: HTTPRoute) -> bool:
    handlers = route.route_handlers
    layers = (app.cors_config, app.csrf_config, app.compression_config, app.allowed_hosts)
    return any(layers) or any(handler.cache or handler.resolve_middleware() for handler in handlers)
