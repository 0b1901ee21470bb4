"""What an app has of ours: the gate around it, and our way around some of its own methods.

Rule 1: a response is settled when every `after_request` function has had its say, still inside the request's context,
    so that a failed commit is an error like one of the view's: the app's own handlers answer it.
Rule 2: what teardown functions do comes after the answer: it is kept, and cannot change it.
Rule 3: an app context that no request has is a unit of work of its own: kept at a clean end, else rolled back.
Rule 4: a request that asks for no session costs a few function calls: all else is made when one is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from contextvars import Context, ContextVar, copy_context
from typing import TYPE_CHECKING, Any

from flask import Flask, Response, request
from flask.ctx import AppContext, RequestContext
from flask.globals import _cv_app, _cv_request
from werkzeug.exceptions import ServiceUnavailable

from transept._portal import Bridge, watched
from transept.context import PLAIN, UnitScope, plain, surround
from transept.database import Database, Databases
from transept.errors import ImproperConfigurationError
from transept.extensions.flask._context import ContextScope, ended_well, raised_meanwhile
from transept.gate.answer import answer_to, at_start, outcome_of
from transept.gate.served import Body, Served
from transept.hosts import BridgeHost, PlainHost
from transept.unit import BeforeCommit

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

__all__ = ["Tied", "tied_to"]

SERVED = "transept.served"  # in the environ, while a request is under way: its scope, or that it needs none yet
SCOPE = "transept_scope"  # on a context: its scope, or that it may have one
AROUND = "transept_around"  # on a request context: the app context that was there before
UNUSED: Any = object()
NOTHING: Any = object()


class Asked(Served):
    """A request of a Flask app that has asked for a session, or that streams."""

    def __init__(self, gate: Tied, environ: WSGIEnvironment) -> None:
        super().__init__(gate, environ)
        self.response: Response | None = None  # once it is settled
        self.kept = False  # something of it, as far as its status says


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
        self._handle: Any = app.handle_user_exception
        self._teardown: Any = app.do_teardown_appcontext
        self._async_to_sync: Any = app.async_to_sync
        ways_around: dict[str, Any] = {
            "wsgi_app": self.wsgi_app,
            "request_context": self.request_context,
            "finalize_request": self.finalize_request,
            "handle_user_exception": self.handle_user_exception,
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
        for database in databases:
            self.registry.add(database)
        self.host = host_for(self.registry, self.bridge)

    # Responses.

    def wsgi_app(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """The app; and then what a body does that is made while it is sent."""
        environ[SERVED] = UNUSED
        try:
            body: Iterable[bytes] = self._wsgi_app(environ, start_response)
        except BaseException as error:
            body = self._raised(environ.get(SERVED, UNUSED), error)
        served = environ.pop(SERVED, UNUSED)
        return body if served is UNUSED else self._served(served, body)

    def _raised(self, served: Any, error: BaseException) -> Iterable[bytes]:
        """An error of the teardown, after work was kept, does not make that an error."""
        if served is UNUSED:
            raise error
        served.close_unit(error)
        if served.response is not None and served.kept and isinstance(error, Exception) and not _propagates(self.app):
            self.app.logger.exception("%s answered, and kept its work; its teardown failed", served.describe())
            return served.response.get_app_iter(served.environ)  # type: ignore[no-any-return]
        served.end()
        raise error

    def _served(self, served: Asked, body: Iterable[bytes]) -> Iterable[bytes]:
        response = served.response
        if response is None:  # middleware inside has answered
            served.close_unit(None)
        else:
            served.keep_what_came_between(response.status_code)
            if not isinstance(response.response, (list, tuple)):
                left = response.headers.get("content-length")
                served.left = None if left is None else int(left)
                sent = Body(served, body)
                sent.begin()
                return sent
            served.finish()
        served.end()
        return body

    def finalize_request(self, *arguments: Any, **keywords: Any) -> Response:
        """Flask makes its response; then it is settled."""
        response: Response = self._finalize(*arguments, **keywords)
        requests = _cv_request.get()
        if requests.__dict__.get(SCOPE) is UNUSED and type(response.response) is list:
            return response
        try:
            self._settle(requests, response)
        except Exception as failure:
            _close(response, failure)
            return self._answer(requests, failure)
        return response

    def _answer(self, requests: RequestContext, failure: Exception) -> Response:
        """As an error of the view. What the handler does is settled in its turn, and an error there is not handled."""
        response: Response = self._finalize(self.app.handle_user_exception(failure))
        try:
            self._settle(requests, response)
        except Exception as second:
            _close(response, second)
            raise
        return response

    def _settle(self, requests: RequestContext, response: Response) -> None:
        scope = requests.__dict__.get(SCOPE)
        if scope is UNUSED:
            scope = self._asked(requests)
        status = response.status_code
        own = _cv_app.get().__dict__.get(SCOPE)
        if isinstance(scope, Asked):
            used = () if scope.unit is None else scope.unit.handles()
            scope.status = status
            scope.settle(status, at_start(status))
            scope.response = response
            scope.kept = any(database.policy.keeps(status) for database, _ in used)
        elif own is not None and own.unit is not None and own.unit.has_to_settle():  # in a test_request_context
            plain(own.host).run(own.unit.settle(outcome_of(status), at_start(status)))

    def handle_user_exception(self, *arguments: Any, **keywords: Any) -> Any:
        """Where no handler takes it, an outcome in doubt and a database that is down are 503, as an HTTP error is."""
        try:
            return self._handle(*arguments, **keywords)
        except Exception as failure:
            answer = answer_to(failure)
            if answer is None or failure not in arguments:
                raise
            self.app.logger.error("%s %s: %s", request.method, request.path, failure, exc_info=failure)
            said = ServiceUnavailable(answer.body.decode(), retry_after=_retry_after(answer.more))
            said.__cause__ = failure
            return self._handle(*(said if one is failure else one for one in arguments), **keywords)

    # Contexts.

    def request_context(self, environ: WSGIEnvironment) -> RequestContext:
        """Of a request under way, or of a test, which sends none."""
        context: RequestContext = self._request_context(environ)
        if SERVED in environ:
            context.__dict__[SCOPE] = UNUSED
            around = _cv_app.get(None)
            if around is not None:
                context.__dict__[AROUND] = around
        return context

    def scope_of(self, context: AppContext) -> UnitScope:
        """The unit of work of the request that this app context is there for; else its own."""
        requests = _cv_request.get(None)
        if requests is not None and _is_of(context, requests):
            scope: Any = requests.__dict__.get(SCOPE)
            if scope is UNUSED and SERVED in requests.request.environ:
                return self._asked(requests)
            if isinstance(scope, Asked) and not (scope.closed and context._cv_tokens):
                return scope
        return self._own_scope(context)

    def _asked(self, requests: RequestContext) -> Asked:
        environ = requests.request.environ
        asked = requests.__dict__[SCOPE] = environ[SERVED] = Asked(self, environ)
        return asked

    def _own_scope(self, context: AppContext) -> ContextScope:
        own: ContextScope | None = context.__dict__.get(SCOPE)
        if own is None or (own.closed and context._cv_tokens):
            own = context.__dict__[SCOPE] = ContextScope(self)
            if not context._cv_tokens:  # it was popped: this code has outlived it
                own.end()
        return own

    def do_teardown_appcontext(self, *arguments: Any, **keywords: Any) -> None:
        """After every teardown function, the context's own unit of work ends."""
        context = _cv_app.get()
        try:
            self._teardown(*arguments, **keywords)
        except BaseException as failure:
            if isinstance(own := context.__dict__.get(SCOPE), ContextScope):
                own.leave(failure)
            raise
        own = context.__dict__.get(SCOPE)
        if own is not None and not own.closed:
            given = next((one for one in (*arguments, *keywords.values()) if isinstance(one, BaseException)), None)
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

    def place(self) -> AppContext | None:
        return _cv_app.get(None)

    def scope_at(self, place: AppContext) -> UnitScope | None:
        tied = tied_to(place.app)
        return None if tied is None else tied.scope_of(place)


surround(FlaskContexts())


def _is_of(context: AppContext, requests: RequestContext) -> bool:
    """Whether an app context is there for this request: it was pushed for it, or was there before."""
    pushed = [made for _, made in requests._cv_tokens if made is not None]
    return context in pushed if pushed else context is requests.__dict__.get(AROUND)


def host_for(databases: Iterable[Database], bridge: Bridge) -> PlainHost | BridgeHost:
    """Where the units of an app with these databases settle."""
    return PLAIN if all(database.blocking for database in databases) else BridgeHost(bridge)


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
