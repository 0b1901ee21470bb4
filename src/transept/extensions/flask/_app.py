"""What an app has of ours: the gate around it, and our way around some of its own methods.

Rule 1: a response is settled when every `after_request` function has had its say, still inside the request's context,
    so that a failed commit is an error like one of the view's: the app's own handlers answer it.
Rule 2: what teardown functions do comes after the answer: it is kept, and cannot change it.
Rule 3: an app context that no request has is a unit of work of its own: kept at a clean end, else rolled back.
Rule 4: a request that asks for no session costs a few function calls: all else is made when one is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from contextvars import Context, ContextVar, copy_context
from functools import cache
from typing import TYPE_CHECKING, Any

from flask import Flask, Response, request
from flask.ctx import AppContext, RequestContext
from flask.globals import _cv_app, _cv_request
from werkzeug.exceptions import HTTPException, ServiceUnavailable
from werkzeug.wrappers import Response as BaseResponse
from werkzeug.wsgi import ClosingIterator

from transept._portal import Bridge, watched
from transept.context import UnitScope, surround
from transept.database import Database, Databases
from transept.errors import ImproperConfigurationError
from transept.extensions.flask._context import ContextScope, ended_well, raised_meanwhile
from transept.gate.answer import answer_to, at_start, outcome_of
from transept.gate.served import Body, Served
from transept.hosts import BridgeHost, PlainHost, from_plain_code, host_for
from transept.unit import BeforeCommit

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

__all__ = ["Tied", "tied_to"]

SERVED = "transept.served"  # in the environ, and on its contexts: the request that is under way
SCOPE = "transept_scope"  # on an app context: its own scope
AROUND = "transept_around"  # on a request context: the app context that was there before
NOTHING: Any = object()
ENTERING: ContextVar[RequestContext | None] = ContextVar("transept_flask_entering", default=None)
"""The request whose contexts are being pushed, or were the last."""


OF_SENDING = ("__call__", "close", "get_app_iter", "get_wsgi_response", "iter_encoded")


class Asked(Served):
    """A request of a Flask app that has asked for a session, or that streams."""

    def __init__(self, gate: Tied, environ: WSGIEnvironment) -> None:
        super().__init__(gate, environ)
        self.settled = False  # along with its response, which stands from then on


class UnderWay:
    """A request that Flask answers now. Middleware may copy its environ, and not this."""

    environ: WSGIEnvironment
    asked: Asked | None = None
    response: Response | None = None  # once it is settled
    streams = False  # code of the app runs while it is sent, or after that
    over = False  # for Flask; its body may be sent now


class Tied:
    """One Flask app and its databases."""

    def __init__(self, app: Flask, databases: Databases, timeout: float) -> None:
        self.app = app
        self.registry = databases
        self.before_commit: BeforeCommit | None = None
        self.bridge = Bridge(timeout)
        self.host: PlainHost | BridgeHost = host_for(databases, self.bridge)
        self._wsgi_app: Any = app.wsgi_app
        self._request_context: Any = app.request_context
        self._finalize: Any = app.finalize_request
        self._handle: Any = app.handle_exception
        self._teardown: Any = app.do_teardown_appcontext
        self._async_to_sync: Any = app.async_to_sync
        ways_around: dict[str, Any] = {
            "wsgi_app": self.wsgi_app,
            "request_context": self.request_context,
            "finalize_request": self.finalize_request,
            "handle_exception": self.handle_exception,
            "do_teardown_appcontext": self.do_teardown_appcontext,
            "async_to_sync": self.async_to_sync,
        }
        for name, ours in ways_around.items():
            setattr(app, name, ours)

    def add(self, databases: Iterable[Database], timeout: float) -> None:
        """The databases of another extension on the same app."""
        if timeout != self.bridge.seconds:
            raise ImproperConfigurationError(
                f"timeout={timeout:g}: another Transept on this app has timeout={self.bridge.seconds:g}, and an "
                "app has one: give both the same."
            )
        registry = self.registry.copy()
        for database in databases:
            registry.add(database)
        self.registry = registry
        self.host = host_for(registry, self.bridge)

    # Responses.

    def wsgi_app(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """The app; and then what a body does that is made while it is sent."""
        outer = environ.get(SERVED)  # of another app, which calls this one
        under_way = environ[SERVED] = UnderWay()
        under_way.environ = environ
        try:
            body: Iterable[bytes] = self._wsgi_app(environ, start_response)
        except BaseException as error:
            body = self._raised(under_way, error)
        finally:
            under_way.over = True
            environ[SERVED] = outer
            ENTERING.set(None)
        return body if under_way.asked is None else self._served(under_way, under_way.asked, body)

    def _raised(self, under_way: UnderWay, error: BaseException) -> Iterable[bytes]:
        """An error of the teardown comes too late to change what was settled, and does not change the answer either."""
        asked, response = under_way.asked, under_way.response
        if asked is None:
            raise error
        if response is not None and asked.settled and isinstance(error, Exception) and not _propagates(self.app):
            asked.roll_back(error)
            with suppress(Exception):  # an error of the response itself, then
                body = response.get_wsgi_response(asked.environ)[0]
                self.app.logger.exception(
                    "%s %s was answered, and its work settled; its teardown failed", *asked.line()
                )
                return body
        asked.close_unit(error)
        asked.end()
        raise error

    def _served(self, under_way: UnderWay, asked: Asked, body: Iterable[bytes]) -> Iterable[bytes]:
        response = under_way.response
        if response is None:  # middleware inside has answered
            asked.close_unit(None)
        else:
            asked.keep_what_came_between(response.status_code)
            if under_way.streams:
                asked.status = response.status_code
                left = response.headers.get("content-length")
                asked.left = int(left) if left is not None and left.isdecimal() else None
                sent = Body(asked, body)
                sent.begin()
                return sent
            asked.finish()
        asked.end()
        return body

    def finalize_request(self, rv: Any, from_error_handler: bool = False) -> Response:
        """Flask makes its response; then it is settled."""
        response: Response = self._finalize(rv, from_error_handler)
        under_way: UnderWay | None = getattr(_cv_request.get(), SERVED, None)
        if under_way is not None:
            setattr(_cv_app.get(), SERVED, under_way)  # for its teardown, when the request context is gone
            under_way.streams = not _is_all_there(response, rv)
            if under_way.asked is None and not under_way.streams:
                under_way.response = response
                return response
        try:
            self._settle(under_way, response)
        except Exception as failure:
            _close(response, failure)
            if under_way is not None and under_way.asked is not None:  # what the refused response did at its end
                under_way.asked.roll_back(failure)
            response = self._answer(under_way, failure)
        return response

    def _answer(self, under_way: UnderWay | None, failure: Exception) -> Response:
        """As an error of the view. What the handler does is settled in its turn, and an error there is not handled."""
        rv = self.app.handle_user_exception(failure)
        response: Response = self._finalize(rv)
        if under_way is not None:
            under_way.streams = not _is_all_there(response, rv)
        try:
            self._settle(under_way, response)
        except Exception as second:
            _close(response, second)
            raise
        return response

    def _settle(self, under_way: UnderWay | None, response: Response) -> None:
        if under_way is None:
            self._settle_test(response)
            return
        asked = under_way.asked or self._asked(under_way)
        used = asked.unit is not None and bool(asked.unit.handles())
        status = asked.status = response.status_code
        asked.settle(status, at_start(status))
        asked.settled = used
        if not under_way.streams and not (asked.unit is not None and asked.unit.busy()):
            asked.close_unit(None)  # what goes on, in a teardown function or a task that was left, has another one
            asked.complete = True
        under_way.response = response

    def _settle_test(self, response: Response) -> None:
        """In a test_request_context, the work is its app context's."""
        own: ContextScope | None = getattr(_cv_app.get(), SCOPE, None)
        if own is not None and own.unit is not None and own.unit.has_to_settle():
            status = response.status_code
            keeps = outcome_of(status)
            from_plain_code(own.unit, own.unit.settle(keeps, at_start(status)), keeps)

    def handle_exception(self, error: Exception) -> Response:
        """Where no handler took it, an outcome in doubt and a database that is down are 503, as an HTTP error is."""
        answer = answer_to(error)
        if answer is None:
            handled: Response = self._handle(error)
            return handled
        self.app.logger.error("%s %s: %s", request.method, request.path, error, exc_info=error)
        said = ServiceUnavailable(answer.body.decode(), retry_after=_retry_after(answer.more))
        said.__cause__ = error
        return self.app.finalize_request(self.app.handle_http_exception(said), from_error_handler=True)

    # Contexts.

    def request_context(self, environ: WSGIEnvironment) -> RequestContext:
        """Of a request under way, or of a test, which sends none."""
        context: RequestContext = self._request_context(environ)
        around = _cv_app.get(None)
        under_way: UnderWay | None = environ.get(SERVED)
        if under_way is not None and not under_way.over:
            setattr(context, SERVED, under_way)
            if around is not None:
                setattr(context, AROUND, around)
            else:
                ENTERING.set(context)
        elif around is not None and (outer := _cv_request.get(None)) is not None and _is_of(around, outer):
            setattr(around, SERVED, getattr(outer, SERVED, None))  # a test's inside it, which shares its app context
        return context

    def scope_of(self, context: AppContext) -> UnitScope:
        """The unit of work of the request that this app context is there for; else its own."""
        requests = _cv_request.get(None)
        if requests is None:
            requests = _entering(context)
        inside = requests is not None and _is_of(context, requests)
        under_way: UnderWay | None = getattr(requests if inside else context, SERVED, None)
        if under_way is None:
            return self._own_scope(context)
        asked = under_way.asked
        if not under_way.over:
            return asked or self._asked(under_way)
        if inside and (under_way.response is None or not context._cv_tokens):  # this code has outlived it
            asked = asked or self._asked(under_way)
            asked.closed = True
            return asked
        return asked if inside and asked is not None and not asked.closed else self._own_scope(context)

    def _asked(self, under_way: UnderWay) -> Asked:
        asked: Asked = under_way.__dict__.setdefault("asked", Asked(self, under_way.environ))  # one, of two threads
        asked.complete = under_way.response is not None  # it comes after the response: of a teardown function
        return asked

    def _own_scope(self, context: AppContext) -> ContextScope:
        own: ContextScope | None = getattr(context, SCOPE, None)
        if own is None or (own.closed and context._cv_tokens):
            own = ContextScope(self)
            setattr(context, SCOPE, own)
            if not context._cv_tokens:  # it was popped: this code has outlived it
                own.end()
        return own

    def do_teardown_appcontext(self, *arguments: Any) -> None:
        """After every teardown function, the context's own unit of work ends."""
        try:
            self._teardown(*arguments)
        except BaseException as failure:
            own = getattr(_cv_app.get(), SCOPE, None)
            if own is not None:
                own.leave(failure)
            raise
        own = getattr(_cv_app.get(), SCOPE, None)
        if own is not None and not own.closed:
            given = next((one for one in arguments if isinstance(one, BaseException)), None)
            error = given or raised_meanwhile(own)
            own.leave(None if ended_well(error) else error)

    # Async views.

    def async_to_sync(self, function: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Any]:
        """Async functions of the app run on the background loop, where its async databases are."""
        bridge = self.bridge
        if self.host.bridge is None:
            as_flask_does: Callable[..., Any] = self._async_to_sync(function)
            return as_flask_does

        def run_there(*arguments: Any, **keywords: Any) -> Any:
            context = copy_context()
            what = f"the async function {function.__module__}.{function.__qualname__}"
            try:
                return bridge.run(_awaited(watched(function(*arguments, **keywords), function)), what, context)
            finally:
                _take_over(context)

        return run_there


class FlaskContexts:
    """Flask's own contexts, which have units of work."""

    hint = "In Flask push an app context, `with app.app_context():`, or use `with db.with_session() as session:`."

    def place(self) -> AppContext | None:
        return _cv_app.get(None)

    def scope_at(self, place: AppContext) -> UnitScope | None:
        tied = tied_to(place.app)
        return None if tied is None else tied.scope_of(place)


surround(FlaskContexts())


def _entering(context: AppContext) -> RequestContext | None:
    """The request whose app context this is, while that is being pushed, which comes first."""
    requests = ENTERING.get(None)
    entering = requests is not None and not requests._cv_tokens and requests.app is context.app
    if entering:
        setattr(requests, AROUND, context)  # which it takes as its own
    return requests if entering else None


def _is_of(context: AppContext, requests: RequestContext) -> bool:
    """Whether an app context is there for this request: it was pushed for it, or was there before."""
    pushed = [made for _, made in requests._cv_tokens if made is not None]
    return context in pushed if pushed else context is getattr(requests, AROUND, None)


def tied_to(app: Flask) -> Tied | None:
    """What this app has of ours, if anything."""
    tied: Tied | None = app.__dict__.get("transept_tied")
    return tied


async def _awaited(work: Any) -> Any:
    return await work


def _take_over(context: Context) -> None:
    """Context variables that an async function has set are set for what comes after it, as Flask does it, too."""
    variable: ContextVar[Any]
    for variable, value in context.items():
        if variable.get(NOTHING) is not value:
            variable.set(value)


def _is_all_there(response: Response, rv: Any) -> bool:
    """Whether no code of the app runs any more: none makes its body, and none is to be called at its end."""
    body = response.response
    page = isinstance(rv, HTTPException) and rv.response is None and type(body) is ClosingIterator  # of Werkzeug's own
    if response._on_close or not (page or isinstance(body, (list, tuple))):
        return False
    made: Any = type(response)
    return bool(_sends_as_werkzeug_does(made))


@cache
def _sends_as_werkzeug_does(made: Any) -> bool:
    """Whether none of the app's code runs when a response of this class is sent."""
    return all(getattr(made, name) is getattr(BaseResponse, name) for name in OF_SENDING)


def _close(response: Response, failure: BaseException) -> None:
    """The refused response: a body that is a generator may hold contexts and files."""
    try:
        response.close()
    except Exception as second:
        failure.add_note(f"transept: while closing the refused response: {second!r}")


def _propagates(app: Flask) -> bool:
    """Whether errors are the developer's to see; Flask's own condition."""
    propagates = app.config["PROPAGATE_EXCEPTIONS"]
    return bool(app.testing or app.debug if propagates is None else propagates)


def _retry_after(headers: Iterable[tuple[str, str]]) -> int | None:
    return next((int(value) for name, value in headers if name == "retry-after"), None)
