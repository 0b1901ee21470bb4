"""The commit gate for WSGI: the start of a response waits until its work is settled.

The rules are those of `transept.gate.asgi`. What differs: a WSGI response is complete when its body's iterator ends, so
a last settling that fails ends the body with an error, which cuts the response off; only where a Content-Length was
sent is the chunk that completes it held back. `close()` of the body comes after the response.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias

from transept._bridge import run_now
from transept._loops import has_resources
from transept._portal import Bridge
from transept.context import CURRENT, LOOP, PLAIN, Gate, UnitScope
from transept.database import Database, Databases
from transept.errors import CommitInDoubt, DatabaseUnavailable, ImproperConfigurationError, LoopTimeout, OutsideScope
from transept.gate.answer import (
    READING_METHODS,
    always,
    answer_to,
    at_start,
    between_chunks,
    outcome_of,
    report,
)
from transept.hosts import BridgeHost, PlainHost
from transept.lifecycle import stop_all
from transept.settling import Settled, Spare
from transept.unit import BeforeCommit, Unit

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["ENVIRON_KEY", "TIMEOUT", "Request", "WSGIGate", "close_all", "seconds_of"]

ExcInfo: TypeAlias = "tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]"
Answer: TypeAlias = "Callable[[WSGIEnvironment, Exception], WSGIApplication | None]"

ENVIRON_KEY = "transept.units"
TIMEOUT = 60.0
NOTHING = Settled()

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
        self.host: PlainHost | BridgeHost = PLAIN
        self.choose_host()

    def choose_host(self) -> None:
        """Again whenever a database was added: async ones need the background loop."""
        if any(not database.blocking for database in self.registry):
            self.host = BridgeHost(self.bridge)

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
                portal.stop()


def seconds_of(setting: str, value: object) -> float:
    """Raises ImproperConfigurationError: it is no number of seconds above zero."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ImproperConfigurationError(f"{setting}={value!r}: seconds are needed, more than 0.")
    return float(value)


class Request(UnitScope):
    """One request: what the app has said, what was passed on, and the unit of the moment."""

    def __init__(self, gate: WSGIGate, environ: WSGIEnvironment, start_response: StartResponse) -> None:
        super().__init__()
        self.gate = gate
        self.host = self.plain = gate.host
        self.environ = environ
        self.start_response = start_response
        self.said: tuple[int, str, list[tuple[str, str]], Any] | None = None
        self.started = False
        self.complete = False
        self.warned = False
        self.ahead = False
        self.kept = False
        self.unwritten: list[bytes] = []
        self.left: int | None = None
        self.write: Callable[[bytes], object] | None = None
        environ[ENVIRON_KEY] = self

    def may_write(self) -> bool:
        return self.complete or self.environ.get("REQUEST_METHOD", "GET") not in READING_METHODS

    def origin(self) -> Gate:
        return self.gate

    def describe(self) -> str:
        after = "what came after " if self.complete else ""
        return f"{after}{self.environ.get('REQUEST_METHOD', '')} {self.environ.get('PATH_INFO', '')}"

    def run(self) -> Iterable[bytes]:
        try:
            body = self.ask(self.gate.app)
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
        body = _Body(self, chunks)
        try:
            body.begin()
        except BaseException as error:
            body.abandon(error)
            raise
        return body

    @contextmanager
    def inside(self) -> Iterator[None]:
        """The app's code runs in here, whichever thread the server calls from."""
        token = CURRENT.set(self)
        try:
            yield
        finally:
            CURRENT.reset(token)

    def start(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None, /) -> Callable[[bytes], object]:
        """What the app calls: remembered, and passed on when settled. A later call, for an error, replaces it."""
        if self.started:
            if exc_info:
                raise exc_info[1].with_traceback(exc_info[2])
            raise AssertionError("start_response was called again after the response had started")
        self.said = (int(status.split(" ", 1)[0]), status, list(headers), exc_info)
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
        if self.started or self.said is None:
            return
        status, line, headers, exc_info = self.said
        if self.ahead:
            self.keep_what_came_between(status)
        else:
            self.settle(status, at_start(status))
        self.started = True
        self.left = next((int(value) for name, value in headers if name.lower() == "content-length"), None)
        self.write = self.start_response(line, headers, exc_info) if exc_info else self.start_response(line, headers)

    def settle_ahead(self, status: int) -> None:
        """The framework knows its response before it starts it: settle here, where its error handlers can answer."""
        unit = self.unit
        used = [] if unit is None else unit.handles()
        self.settle(status, at_start(status))
        self.ahead = True
        self.kept = any(database.policy.keeps(status) for database, _ in used)

    def settle(self, status: int, spare: Spare) -> None:
        unit = self.unit
        if unit is None:
            return
        settled = NOTHING
        if unit.has_to_settle():
            try:
                settled = self.plain.run(unit.settle(outcome_of(status), spare))
            except LoopTimeout as failure:
                raise self.in_doubt(unit, status, failure) from failure
        self.warned = self.warned or report(unit, settled, status)

    def in_doubt(self, unit: Unit, status: int, failure: LoopTimeout) -> Exception:
        """Nobody knows what became of it; and nobody waits for its end once more."""
        self.unit = None
        self.gate.bridge.portal.leave(unit.close(), f"{unit.name}: the end of its unit of work")
        kept = [database.key for database, _ in unit.handles() if database.policy.keeps(status)]
        return CommitInDoubt(", ".join(kept)) if kept else failure

    def keep_what_came_between(self, status: int) -> None:
        """What a framework's teardown did after its response was settled. The answer is given, so that cannot fail."""
        unit = self.unit
        if unit is not None and unit.has_to_settle():
            try:
                self.plain.run(unit.settle(always, at_start(status)))
            except Exception:
                logger.exception("%s: what came after its response could not be kept", self.describe())

    def before_chunk(self, data: bytes) -> bool:
        """Settle between chunks; whether a client that counts bytes has the whole body with this one."""
        unit = self.unit
        if unit is not None and not unit.blocks and self.said is not None and unit.has_to_settle():
            self.plain.run(unit.settle(outcome_of(self.said[0]), between_chunks))
        if self.left is None:
            return False
        self.left -= len(data)
        return self.left <= 0

    def finish(self) -> None:
        """The last settling: after it the response is complete, and its sessions are over."""
        unit = self.unit
        if unit is not None and self.said is not None and not unit.end_idle():
            settled = self.plain.run(unit.finish(outcome_of(self.said[0])))
            self.warned = self.warned or report(unit, settled, self.said[0])
        self.close_unit(None)
        if self.write is not None:
            for data in self.unwritten:
                self.write(data)
        self.complete = True

    def keep_what_came_after(self) -> None:
        unit, self.unit = self.unit, None
        if unit is not None and not unit.end_idle():
            self.plain.run(unit.finish(always))

    def close_unit(self, error: BaseException | None) -> None:
        unit, self.unit = self.unit, None
        if unit is not None and not unit.end_idle():
            try:
                self.plain.run(unit.close())
            except Exception as failure:
                if error is None:
                    raise
                error.add_note(f"transept: while closing {unit.name}: {failure!r}")

    def answer_failure(self, failure: Exception) -> Iterable[bytes]:
        """The app's own error handler answers; or, where the outcome is in doubt, we; else the server's 500."""
        self.said = None
        answering = self.gate.answer(self.environ, failure) if self.gate.answer is not None else None
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


class _Body:
    """The body that the server iterates: it starts the response, settles between chunks, and closes the app's own."""

    def __init__(self, request: Request, chunks: Iterable[bytes]) -> None:
        self._request = request
        self._chunks = chunks
        self._iterator: Iterator[bytes] = iter(())
        self._held: list[bytes] = []
        self._exhausted = False

    def begin(self) -> None:
        """Start the response; an app that starts it only with its first chunk is asked for that chunk."""
        request = self._request
        self._iterator = iter(self._chunks)
        if request.said is None and (first := self._next()) is not None:
            self._held.append(first)
        request.settle_start()

    def __iter__(self) -> _Body:
        return self

    def __next__(self) -> bytes:
        try:
            chunk = self._held.pop() if self._held else self._next()
            if chunk is None:
                raise StopIteration
            if not self._exhausted and self._request.before_chunk(chunk):
                chunk = self._with_the_rest(chunk)
            return chunk
        except StopIteration:
            raise
        except BaseException as error:
            self._request.close_unit(error)
            raise

    def close(self) -> None:
        """What came after the response is kept, unless it raises; what the body left open is not."""
        request = self._request
        try:
            self._close_chunks()
            if request.complete:
                request.keep_what_came_after()
            else:
                request.close_unit(None)
        except BaseException as error:
            request.close_unit(error)
            raise
        finally:
            request.closed = True

    def abandon(self, error: BaseException) -> None:
        """The response never started: close the app's body, and roll back what it does there."""
        try:
            self._close_chunks()
        except Exception as second:
            error.add_note(f"transept: while closing the refused body: {second!r}")
        self._request.close_unit(error)
        self._request.closed = True

    def _next(self) -> bytes | None:
        """The app's next chunk; at the end, None, after the last settling."""
        if self._exhausted:
            return None
        try:
            with self._request.inside():
                return next(self._iterator)
        except StopIteration:
            self._exhausted = True
            self._request.finish()
            return None

    def _with_the_rest(self, chunk: bytes) -> bytes:
        """The chunk completes the announced length: what the app does after it is settled first."""
        rest = []
        while (more := self._next()) is not None:
            rest.append(more)
        return chunk + b"".join(rest)

    def _close_chunks(self) -> None:
        close = getattr(self._chunks, "close", None)
        if close is not None:
            with self._request.inside():
                close()
