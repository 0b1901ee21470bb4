"""The commit gate for WSGI: the start of a response waits until its work is settled.

The rules are those of `transept.gate.asgi`. What differs: a WSGI response is complete when its body's iterator ends, so
a last settling that fails ends the body with an error, which cuts the response off; only where a Content-Length was
sent is the chunk that completes it held back. `close()` of the body comes after the response.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias

from transept._bridge import run_now
from transept.context import CURRENT, PLAIN, Gate, UnitScope
from transept.database import Database, Databases
from transept.errors import DatabaseUnavailable, ImproperConfigurationError, OutsideScope
from transept.gate.answer import READING_METHODS, always, answer_to, at_start, between_chunks, outcome_of, report
from transept.lifecycle import stop_all
from transept.unit import BeforeCommit

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["ENVIRON_KEY", "WSGIGate"]

ExcInfo: TypeAlias = "tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]"
Answer: TypeAlias = "Callable[[WSGIEnvironment, Exception], WSGIApplication | None]"

ENVIRON_KEY = "transept.units"

logger = logging.getLogger("transept")


class WSGIGate:
    """Middleware that holds the start of each response back until the request's unit of work is settled.

    Args:
        app: the WSGI app.
        registry: the databases, blocking ones; a `Registry`, one database or several.
        answer: given the environ and the error that kept a response from starting, returns the WSGI app that answers
            instead, or None. A framework's own error handlers come in here.

    Raises:
        ImproperConfigurationError: an async database, which a plain WSGI app has no event loop for.
    """

    def __init__(
        self, app: WSGIApplication, registry: Databases | Database | Iterable[Database], *, answer: Answer | None = None
    ) -> None:
        self.app = app
        self.registry = Databases.of(registry, "registry")
        self.before_commit: BeforeCommit | None = None
        self.answer = answer
        for database in self.registry:
            if not database.blocking:
                raise ImproperConfigurationError(
                    f"database {database.key!r} is async, and a WSGI app has no event loop for it: use the sync "
                    "configuration of the same database."
                )

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        outer: UnitScope | None = environ.get(ENVIRON_KEY)
        if outer is not None and not outer.closed:
            return self.app(environ, start_response)
        return _Request(self, environ, start_response).run()

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
        run_now(stop_all(list(self.registry), PLAIN))


class _Request(UnitScope):
    """One request: what the app has said, what was passed on, and the unit of the moment."""

    host = PLAIN

    def __init__(self, gate: WSGIGate, environ: WSGIEnvironment, start_response: StartResponse) -> None:
        super().__init__()
        self.gate = gate
        self.environ = environ
        self.start_response = start_response
        self.said: tuple[int, str, list[tuple[str, str]], Any] | None = None
        self.started = False
        self.complete = False
        self.warned = False
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
        except DatabaseUnavailable as failure:
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
        unit = self.unit
        if unit is not None:
            settled = run_now(unit.settle(outcome_of(status), at_start(status)))
            self.warned = self.warned or report(unit, settled, status)
        self.started = True
        self.left = next((int(value) for name, value in headers if name.lower() == "content-length"), None)
        self.write = self.start_response(line, headers, exc_info) if exc_info else self.start_response(line, headers)

    def before_chunk(self, data: bytes) -> bool:
        """Settle between chunks; whether a client that counts bytes has the whole body with this one."""
        if self.unit is not None and not self.unit.blocks and self.said is not None:
            run_now(self.unit.settle(outcome_of(self.said[0]), between_chunks))
        if self.left is None:
            return False
        self.left -= len(data)
        return self.left <= 0

    def finish(self) -> None:
        """The last settling: after it the response is complete, and its sessions are over."""
        unit = self.unit
        if unit is not None and self.said is not None:
            settled = run_now(unit.finish(outcome_of(self.said[0])))
            self.warned = self.warned or report(unit, settled, self.said[0])
        self.close_unit(None)
        if self.write is not None:
            for data in self.unwritten:
                self.write(data)
        self.complete = True

    def keep_what_came_after(self) -> None:
        unit = self.unit
        if unit is not None:
            self.unit = None
            run_now(unit.finish(always))

    def close_unit(self, error: BaseException | None) -> None:
        unit, self.unit = self.unit, None
        if unit is not None:
            try:
                run_now(unit.close())
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

    def __init__(self, request: _Request, chunks: Iterable[bytes]) -> None:
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
