"""The commit gate for WSGI: the start of a response waits until its work is settled.

The rules are those of `transept.gate.asgi`. What differs: a WSGI response is complete when its body's iterator ends, so
a last settling that fails ends the body with an error, which cuts the response off; only where a Content-Length was
sent is the chunk that completes it held back. `close()` of the body comes after the response.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias

from transept._bridge import run_now
from transept._loops import has_resources
from transept._portal import Bridge
from transept.context import LOOP, PLAIN, UnitScope
from transept.database import Database, Databases
from transept.errors import DatabaseUnavailable, ImproperConfigurationError, LoopTimeout, OutsideScope
from transept.gate.answer import answer_to, at_start
from transept.gate.served import Body, Served
from transept.hosts import BridgeHost, PlainHost, host_for
from transept.lifecycle import stop_all
from transept.unit import BeforeCommit

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["ENVIRON_KEY", "TIMEOUT", "WSGIGate", "close_all", "seconds_of"]

ExcInfo: TypeAlias = "tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]"
Answer: TypeAlias = "Callable[[WSGIEnvironment, Exception], WSGIApplication | None]"

ENVIRON_KEY = "transept.units"
TIMEOUT = 60.0

logger = logging.getLogger("transept")


class WSGIGate:
    """Middleware that holds the start of each response back until the request's unit of work is settled.

    Async databases run on an event loop in the background, one for the process, and give the app blocking sessions.

    Args:
        app: the WSGI app.
        registry: the databases; a `Registry`, one database or several.
        answer: given the environ and the error that kept a response from starting, returns the WSGI app that answers
            instead, or None. A framework's own error handlers come in here.
        timeout: how many seconds a thread waits for one call on the background loop, such as a statement.

    Raises:
        ImproperConfigurationError: a timeout that is no number of seconds.
    """

    def __init__(
        self,
        app: WSGIApplication,
        registry: Databases | Database | Iterable[Database],
        *,
        answer: Answer | None = None,
        timeout: float = TIMEOUT,
    ) -> None:
        self.app = app
        self.registry = Databases.of(registry, "registry")
        self.before_commit: BeforeCommit | None = None
        self.answer = answer
        self.bridge = Bridge(seconds_of("timeout", timeout))
        self.host = host_for(self.registry, self.bridge)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        outer: UnitScope | None = environ.get(ENVIRON_KEY)
        if outer is not None and not outer.closed:
            return self.app(environ, start_response)
        return Request(self, environ, start_response).run()

    def get_session(self, environ: WSGIEnvironment, key: str | None = None) -> Any:
        """The request's session of the database with this key; the same object throughout the request.

        Raises:
            OutsideScope: no gate stands around this request, or it is over.
            ImproperConfigurationError: no database has this key.
        """
        units: UnitScope | None = environ.get(ENVIRON_KEY)
        if units is None:
            raise OutsideScope("no WSGIGate stands around this request: wrap the app in it, and call the wrapped one.")
        return units.open().session(self.registry.get(key))

    def close(self) -> None:
        """Close what the databases opened. For the end of the process; they open again when used again."""
        close_all(list(self.registry), self.host)


def close_all(databases: list[Database], host: PlainHost | BridgeHost) -> None:
    """Close what these databases have opened, and the background loop if nothing else uses it."""
    blocking = [database for database in databases if database.blocking]
    try:
        run_now(stop_all(blocking, PLAIN))
    finally:
        portal = host.bridge.portal if isinstance(host, BridgeHost) else None
        if isinstance(host, BridgeHost) and portal is not None and portal.loop is not None:
            host.run(stop_all([database for database in databases if not database.blocking], LOOP))
            if not has_resources(portal.loop):
                portal.stop(unless_used=True)


def seconds_of(setting: str, value: object) -> float:
    """Raises ImproperConfigurationError: it is no number of seconds above zero."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ImproperConfigurationError(f"{setting}={value!r}: seconds are needed, more than 0.")
    return float(value)


class Request(Served):
    """One request of a plain WSGI app: what the app has said, and what was passed on."""

    def __init__(self, gate: WSGIGate, environ: WSGIEnvironment, start_response: StartResponse) -> None:
        super().__init__(gate, environ)
        self.app = gate.app
        self.answer = gate.answer
        self.start_response = start_response
        self.said: tuple[str, list[tuple[str, str]], Any] | None = None
        self.started = False
        self.unwritten: list[bytes] = []
        self.write: Callable[[bytes], object] | None = None
        environ[ENVIRON_KEY] = self

    def run(self) -> Iterable[bytes]:
        try:
            body = self.ask(self.app)
        except (DatabaseUnavailable, LoopTimeout) as failure:
            return self.answer_ourselves(failure)
        try:
            return self.begun(body)
        except Exception as failure:
            return self.answer_failure(failure)

    def ask(self, app: WSGIApplication) -> Iterable[bytes]:
        try:
            with self.inside():
                return app(self.environ, self.start)
        except BaseException as error:
            self.close_unit(error)
            self.closed = True
            raise

    def begun(self, chunks: Iterable[bytes]) -> Iterable[bytes]:
        """The body, once its start has been settled and passed on."""
        body = Body(self, chunks)
        try:
            body.begin()
            if self.said is None:
                body.ask_for_first()
            self.settle_start()
        except BaseException as error:
            body.abandon(error)
            raise
        return body

    def start(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None, /) -> Callable[[bytes], object]:
        """What the app calls: remembered, and passed on when settled. A later call, for an error, replaces it."""
        if self.started:
            if exc_info:
                raise exc_info[1].with_traceback(exc_info[2])
            raise AssertionError("start_response was called again after the response had started")
        self.status = int(status.split(" ", 1)[0])
        self.said = (status, list(headers), exc_info)
        return self.write_now

    def write_now(self, data: bytes) -> None:
        """WSGI's old way to send a body; what it sends is settled first."""
        self.settle_start()
        assert self.write is not None
        if self.before_chunk(data):
            self.unwritten.append(data)
        else:
            self.write(data)

    def settle_start(self) -> None:
        if self.started or self.said is None or self.status is None:
            return
        line, headers, exc_info = self.said
        self.settle(self.status, at_start(self.status))
        self.started = True
        self.left = next((int(value) for name, value in headers if name.lower() == "content-length"), None)
        self.write = self.start_response(line, headers, exc_info) if exc_info else self.start_response(line, headers)

    def finish(self) -> None:
        super().finish()
        if self.write is not None:
            for data in self.unwritten:
                self.write(data)

    def answer_failure(self, failure: Exception) -> Iterable[bytes]:
        """The app's own error handler answers; or, where the outcome is in doubt, we; else the server's 500."""
        self.said = self.status = None
        answering = self.answer(self.environ, failure) if self.answer is not None else None
        if answering is not None:
            self.closed = False
            return self.begun(self.ask(answering))
        return self.answer_ourselves(failure)

    def answer_ourselves(self, failure: Exception) -> Iterable[bytes]:
        answer = answer_to(failure)
        if answer is None:
            raise failure
        logger.error("%s: %s", self.describe(), failure, exc_info=failure)
        self.start_response(f"{answer.status} {answer.reason}", answer.headers)
        return [answer.body]
