"""A request that a WSGI server asks for: its unit of work, and how it is settled along with the response."""

from __future__ import annotations

import logging
from collections.abc import Coroutine, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from transept._portal import Bridge
from transept.context import CURRENT, Gate, UnitScope
from transept.errors import CommitInDoubt, LoopTimeout
from transept.gate.answer import READING_METHODS, always, at_start, between_chunks, never, outcome_of, report
from transept.hosts import BridgeHost, PlainHost, from_plain_code
from transept.settling import Keeps, Settled, Spare
from transept.unit import Unit

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

__all__ = ["Body", "Served", "ServingGate"]

T = TypeVar("T")

NOTHING = Settled()

logger = logging.getLogger("transept")


class ServingGate(Gate, Protocol):
    """What a request knows of its gate."""

    @property
    def host(self) -> PlainHost | BridgeHost: ...

    @property
    def bridge(self) -> Bridge: ...


class Served(UnitScope):
    """One request: the unit of the moment, and what is settled when."""

    def __init__(self, gate: ServingGate, environ: WSGIEnvironment) -> None:
        super().__init__()
        self.gate = gate
        self.host = gate.host
        self.environ = environ
        self.status: int | None = None  # of the response, once it is known
        self.complete = False
        self.warned = False
        self.left: int | None = None  # bytes, where the client counts them

    def may_write(self) -> bool:
        return self.complete or self.environ.get("REQUEST_METHOD", "GET") not in READING_METHODS

    def origin(self) -> Gate:
        return self.gate

    def describe(self) -> str:
        after = "what came after " if self.complete else ""
        return after + " ".join(self.line())

    def line(self) -> tuple[str, str]:
        """Method and path."""
        return self.environ.get("REQUEST_METHOD", ""), self.environ.get("PATH_INFO", "")

    @contextmanager
    def inside(self) -> Iterator[None]:
        """The app's code runs in here, whichever thread the server calls from."""
        token = CURRENT.set(self)
        try:
            yield
        finally:
            CURRENT.reset(token)

    def settle(self, status: int, spare: Spare) -> None:
        """What a response with this status keeps is kept, and the rest rolled back."""
        unit = self.unit
        if unit is None:
            return
        settled = NOTHING
        if unit.has_to_settle():
            keeps = outcome_of(status)
            settled = self._end(unit, unit.settle(keeps, spare), keeps)
        self.warned = self.warned or report(unit, settled, status)

    def _end(self, unit: Unit, work: Coroutine[Any, Any, T], keeps: Keeps | None) -> T:
        try:
            return from_plain_code(unit, work, keeps)
        except (CommitInDoubt, LoopTimeout) as failure:
            if LoopTimeout in (type(failure), type(failure.__cause__)):
                self.unit = None  # its end comes when it can, and nobody waits for it once more
            raise

    def keep_what_came_between(self, status: int) -> None:
        """What a framework's teardown did after its response was settled. The answer is given, so that cannot fail.

        What it did in the unit of a body that is still to come is kept as that is.
        """
        unit = self.unit
        keeps = always if self.complete else outcome_of(status)
        if unit is not None and unit.has_to_settle():
            try:
                self._end(unit, unit.settle(keeps, at_start(status)), keeps)
            except Exception:
                logger.exception("%s: what came after its response could not be kept", self.describe())

    def roll_back(self, error: BaseException) -> None:
        """What was left open by a teardown that failed, or by the end of a response that was refused."""
        unit = self.unit
        if unit is not None and unit.has_to_settle():
            try:
                self._end(unit, unit.settle(never), None)
            except Exception as failure:
                error.add_note(f"transept: while rolling back {unit.name}: {failure!r}")

    def before_chunk(self, data: bytes) -> bool:
        """Settle between chunks; whether a client that counts bytes has the whole body with this one."""
        unit = self.unit
        if unit is not None and not unit.blocks and self.status is not None and unit.has_to_settle():
            keeps = outcome_of(self.status)
            self._end(unit, unit.settle(keeps, between_chunks), keeps)
        if self.left is None:
            return False
        self.left -= len(data)
        return self.left <= 0

    def finish(self) -> None:
        """The last settling: after it the response is complete, and its sessions are over."""
        unit = self.unit
        if unit is not None and self.status is not None and not unit.end_idle():
            keeps = outcome_of(self.status)
            settled = self._end(unit, unit.finish(keeps), keeps)
            self.warned = self.warned or report(unit, settled, self.status)
        self.close_unit(None)
        self.complete = True

    def keep_what_came_after(self) -> None:
        unit, self.unit = self.unit, None
        if unit is not None and not unit.end_idle():
            self._end(unit, unit.finish(always), always)

    def close_unit(self, error: BaseException | None) -> None:
        unit, self.unit = self.unit, None
        if unit is not None and not unit.end_idle():
            try:
                self._end(unit, unit.close(), None)
            except Exception as failure:
                if error is None:
                    raise
                error.add_note(f"transept: while closing {unit.name}: {failure!r}")


class Body:
    """The body that the server iterates: it settles between chunks, and closes the app's own."""

    def __init__(self, request: Served, chunks: Iterable[bytes]) -> None:
        self._request = request
        self._chunks = chunks
        self._iterator: Iterator[bytes] = iter(())
        self._held: list[bytes] = []
        self._exhausted = False

    def begin(self) -> None:
        """Before the first chunk."""
        self._iterator = iter(self._chunks)

    def ask_for_first(self) -> None:
        """Of an app that starts its response only with its first chunk."""
        if (first := self._next()) is not None:
            self._held.append(first)

    def __iter__(self) -> Body:
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
