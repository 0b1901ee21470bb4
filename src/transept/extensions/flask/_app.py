"""What an app has of ours: the gate around it, and our way around four of its own methods.

Rule 1: a response is settled when every `after_request` function has had its say, still inside the request's context,
    so that a failed commit is an error like one of the view's: the app's own handlers answer it.
Rule 2: what teardown functions do comes after the answer: it is kept, and cannot change it.
Rule 3: an app context that no request has is a unit of work of its own: kept at a clean end, else rolled back.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from contextvars import Context, ContextVar, copy_context
from typing import TYPE_CHECKING, Any

from flask import Flask, Response, appcontext_pushed, has_request_context, request
from flask.globals import app_ctx
from werkzeug.exceptions import ServiceUnavailable

from transept._portal import watched
from transept.context import CURRENT, plain
from transept.database import Database, Databases
from transept.errors import ImproperConfigurationError
from transept.extensions.flask._context import ContextScope, ended_well
from transept.gate.answer import answer_to, at_start, outcome_of
from transept.gate.wsgi import ENVIRON_KEY, Request, WSGIGate

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

__all__ = ["Tied", "tied_to"]

RESPONSE = "transept.response"
SCOPE = "transept_scope"
NOTHING: Any = object()


class Tied:
    """One Flask app with its gate."""

    def __init__(self, app: Flask, databases: Databases, timeout: float) -> None:
        self.app = app
        self.gate = WSGIGate(self._run, databases, timeout=timeout)
        self._wsgi_app: Any = app.wsgi_app
        self._finalize: Any = app.finalize_request
        self._handle: Any = app.handle_user_exception
        self._teardown: Any = app.do_teardown_appcontext
        self._async_to_sync: Any = app.async_to_sync
        ways_around: dict[str, Any] = {
            "wsgi_app": self.gate,
            "finalize_request": self.finalize_request,
            "handle_user_exception": self.handle_user_exception,
            "do_teardown_appcontext": self.do_teardown_appcontext,
            "async_to_sync": self.async_to_sync,
        }
        for name, ours in ways_around.items():
            setattr(app, name, ours)
        appcontext_pushed.connect(self.pushed, app)

    def add(self, databases: Iterable[Database], timeout: float) -> None:
        """The databases of another extension on the same app."""
        if timeout != self.gate.bridge.seconds:
            raise ImproperConfigurationError(
                f"timeout={timeout:g}: another Transept on this app has timeout={self.gate.bridge.seconds:g}, and an "
                "app has one: give both the same."
            )
        for database in databases:
            self.gate.registry.add(database)
        self.gate.choose_host()

    # Responses.

    def finalize_request(self, *arguments: Any, **keywords: Any) -> Response:
        """Flask makes its response; then it is settled."""
        response: Response = self._finalize(*arguments, **keywords)
        try:
            self._settle(response)
        except Exception as failure:
            _close(response, failure)
            return self._answer(failure)
        return response

    def _answer(self, failure: Exception) -> Response:
        """As an error of the view. What the handler does is settled in its turn, and an error there is not handled."""
        response: Response = self._finalize(self.app.handle_user_exception(failure))
        try:
            self._settle(response)
        except Exception as second:
            _close(response, second)
            raise
        return response

    def _settle(self, response: Response) -> None:
        scope = CURRENT.get()
        if type(scope) is Request:
            scope.settle_ahead(response.status_code)
            scope.environ[RESPONSE] = response
        elif type(scope) is ContextScope and scope.unit is not None:  # in a test_request_context
            status = response.status_code
            plain(scope.host).run(scope.unit.settle(outcome_of(status), at_start(status)))

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

    def _run(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """The app; an error of its teardown, after its work was kept, does not make that an error."""
        try:
            body: Iterable[bytes] = self._wsgi_app(environ, start_response)
        except Exception as failure:
            scope = environ[ENVIRON_KEY]
            if not scope.kept or _propagates(self.app):
                raise
            scope.close_unit(failure)
            self.app.logger.exception("%s answered, and kept its work; its teardown failed", scope.describe())
            response: Response = environ[RESPONSE]
            return response.get_app_iter(environ)
        return body

    # Contexts.

    def pushed(self, app: Flask, **_: Any) -> None:
        """An app context was pushed: a request's own, or one that is a unit of work."""
        scope: Any = CURRENT.get()
        requests = type(scope) is Request and scope.gate is self.gate and not scope.closed
        if requests and not (has_request_context() and request.environ is scope.environ):
            return  # that request pushes it for itself, before its request context
        self.begin_context()

    def begin_context(self) -> None:
        """The present app context becomes a unit of work, unless it is one."""
        context = app_ctx._get_current_object()  # type: ignore[attr-defined]
        if not hasattr(context, SCOPE):
            setattr(context, SCOPE, ContextScope(self.gate))

    def do_teardown_appcontext(self, *arguments: Any, **keywords: Any) -> None:
        """After every teardown function, the context's own unit of work ends."""
        context = app_ctx._get_current_object()  # type: ignore[attr-defined]
        scope: ContextScope | None = context.__dict__.pop(SCOPE, None)
        if scope is None:
            self._teardown(*arguments, **keywords)
            return
        error = next((one for one in (*arguments, *keywords.values()) if isinstance(one, BaseException)), None)
        error = error or scope.raised_meanwhile()
        try:
            self._teardown(*arguments, **keywords)
        except BaseException as failure:
            scope.leave(failure)
            raise
        scope.leave(None if ended_well(error) else error)

    # Async views.

    def async_to_sync(self, function: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Any]:
        """Async functions of the app run on the background loop, where its async databases are."""
        bridge = self.gate.bridge
        if self.gate.host.bridge is None:
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
