"""The commit gate for ASGI: the start of a response waits until its work is settled.

    open -> settling -> started -> after
    when settling fails: open -> failed -> (answered by somebody), started -> broken

Rule 1: `http.response.start` is passed on after every database of the request has ended its transaction.
Rule 2: a failed start was never sent. The error is raised out of `send`, so the app unwinds; whoever below answers
anew is heard, then the app's own exception handlers are asked, and only then is the error raised on.
Rule 3: between chunks of a body, transactions end unless a result is being read or the database is manual; the message
that completes the body waits for the last settling.
Rule 4: what comes after the response has one fresh unit, kept when the app returns, rolled back when it raises.

One pure ASGI object a request; nothing is made for a request that asks for no session.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping
from enum import Enum
from typing import Any

from transept.context import CURRENT, LOOP, UnitScope
from transept.database import Database, Handle, Registry
from transept.errors import CommitInDoubt
from transept.gate.answer import IN_DOUBT, READING_METHODS, always, at_start, between_chunks, outcome_of, report
from transept.unit import Settled, Unit

__all__ = ["SCOPE_KEY", "ASGIGate", "unit_scope"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]
Answer = Callable[[Scope, Receive, Send, Exception], Awaitable[bool]]

SCOPE_KEY = "transept.units"

logger = logging.getLogger("transept")


class Phase(Enum):
    OPEN = "open"
    FAILED = "failed"
    STARTED = "started"
    BROKEN = "broken"
    AFTER = "after"


class ASGIGate:
    """Middleware that holds the start of each response back until the request's unit of work is settled.

    Args:
        app: the ASGI app.
        registry: the databases whose sessions requests may ask for; a `Registry`, one database or several.
        answer: called with an error that kept a response from starting, when nobody below has answered; sends a
            response and returns True, or returns False. A framework's own exception handlers are called here.
        on_failed_start: called with the ASGI scope when a start was not passed on, for frameworks that keep note.

    Place it below middleware that adds headers to every response, such as CORS.
    """

    def __init__(
        self,
        app: ASGIApp,
        registry: Registry | Database | Iterable[Database],
        *,
        answer: Answer | None = None,
        on_failed_start: Callable[[Scope], None] | None = None,
    ) -> None:
        self.app = app
        self.registry = Registry.of(registry)
        self.answer = answer
        self.on_failed_start = on_failed_start

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        outer: UnitScope | None = scope.get(SCOPE_KEY)
        if kind not in ("http", "websocket"):
            await self.app(scope, receive, send)
        elif outer is not None and not outer.closed:
            await self._join(outer, scope, receive, send)
        elif kind == "http":
            await _Request(self, scope, receive, send).run()
        else:
            await _WebSocket(self, scope, receive, send).run()

    async def _join(self, outer: UnitScope, scope: Scope, receive: Receive, send: Send) -> None:
        """A gate further out holds this request already: one unit, settled once, by it."""
        _make_lazy(scope, outer, self.registry)
        await self.app(scope, receive, send)


def unit_scope(scope: Scope) -> UnitScope | None:
    """Where the units of this request are, if a gate stands around it."""
    found: UnitScope | None = scope.get(SCOPE_KEY)
    return found


class LazyState(MutableMapping[str, Any]):
    """The request's state, in which a session is made when it is first looked at.

    A view of the mapping that was there: what middleware above and the app below write, both see.
    """

    __slots__ = ("_databases", "_given", "_units")

    def __init__(self, given: MutableMapping[str, Any], units: UnitScope, databases: dict[str, Database]) -> None:
        self._given = given
        self._units = units
        self._databases = databases

    def __getitem__(self, key: str) -> Any:
        try:
            return self._given[key]
        except KeyError:
            database = self._databases.get(key)
            if database is None:
                raise
        return self._units.open().session(database)

    def __setitem__(self, key: str, value: Any) -> None:
        self._given[key] = value

    def __delitem__(self, key: str) -> None:
        del self._given[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._given)

    def __len__(self) -> int:
        return len(self._given)

    def __contains__(self, key: object) -> bool:
        return key in self._given

    def copy(self) -> LazyState:
        return LazyState(dict(self._given), self._units, self._databases)


def _make_lazy(scope: Scope, units: UnitScope, registry: Registry) -> None:
    given: Any = scope.get("state")
    databases = registry.session_keys()
    if isinstance(given, LazyState):
        databases = {**given._databases, **databases}
        given = given._given
    scope["state"] = LazyState({} if given is None else given, units, databases)


class _Request:
    """One HTTP request: what has been sent, and the unit of the moment."""

    __slots__ = (
        "cut",
        "failure",
        "gate",
        "gone",
        "held",
        "left",
        "parting",
        "phase",
        "receive_from",
        "scope",
        "send_to",
        "status",
        "trailers",
        "units",
        "warned",
    )

    def __init__(self, gate: ASGIGate, scope: Scope, receive: Receive, send: Send) -> None:
        self.gate = gate
        self.scope = scope
        self.receive_from = receive
        self.send_to = send
        self.phase = Phase.OPEN
        self.failure: Exception | None = None
        self.gone = False
        self.cut = False
        self.parting: asyncio.Future[None] | None = None
        self.status = 0
        self.left: int | None = None
        self.trailers = False
        self.held: list[Message] = []
        self.warned = False
        self.units = UnitScope(LOOP, self.describe, gate.registry, scope["method"] in READING_METHODS)
        scope[SCOPE_KEY] = self.units
        _make_lazy(scope, self.units, gate.registry)

    def describe(self) -> str:
        after = "what came after " if self.phase is Phase.AFTER else ""
        return f"{after}{self.scope['method']} {self.scope.get('path', '')}"

    async def run(self) -> None:
        token = CURRENT.set(self.units)
        try:
            await self.gate.app(self.scope, self.receive, self.send)
        except BaseException as error:
            await self.close_units(error)
            if self.phase is not Phase.FAILED or not isinstance(error, Exception):
                raise
            await self.answer_failure(error)
        else:
            await self.returned()
        finally:
            self.units.closed = True
            CURRENT.reset(token)

    async def receive(self) -> Message:
        message = await self.receive_from()
        if message["type"] == "http.disconnect" and not self.gone:
            self.client_left()
        return message

    def client_left(self) -> None:
        """Before the start, nothing will be kept. In a body, its unit ends, what was not settled is rolled back, and
        what comes from now on has a unit of its own: the framework may stop the body where it stands, and go on with
        background tasks."""
        if self.phase in (Phase.OPEN, Phase.FAILED):
            self.gone = True
        elif self.phase is Phase.STARTED:
            self.gone = self.cut = True
            unit, self.units.unit = self.units.unit, None
            if unit is not None:
                self.parting = asyncio.ensure_future(unit.close())

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if self.phase is Phase.STARTED:
            try:
                await self.settle_body(message, kind)
            except Exception as error:
                self.phase, self.failure = Phase.BROKEN, error
                raise
            await self.pass_on(message)
        elif self.phase is Phase.AFTER:
            await self.send_to(message)
        elif kind == "http.response.start" and self.phase is not Phase.BROKEN:
            await self.start(message)
        elif self.failure is not None:
            raise self.failure
        else:
            await self.send_to(message)

    async def start(self, message: Message) -> None:
        status: int = message["status"]
        unit = self.units.unit
        if unit is not None:
            try:
                await self.settle_start(unit, status)
            except Exception as error:
                self.phase, self.failure = Phase.FAILED, error
                if self.gate.on_failed_start is not None:
                    self.gate.on_failed_start(self.scope)
                raise
            except BaseException:
                self.cut = True
                await self.close_units(None)
                raise
        self.phase, self.status = Phase.STARTED, status
        self.left = _content_length(message)
        self.trailers = bool(message.get("trailers"))
        await self.send_to(message)

    async def settle_start(self, unit: Unit, status: int) -> None:
        if self.gone:
            unit.doom("the client had left")

        settled = await unit.settle(outcome_of(status), at_start(status))
        self.report(unit, settled, status)

    async def settle_body(self, message: Message, kind: str) -> None:
        if self.is_final(message, kind):
            await self.finish()
        else:
            if self.units.unit is not None:
                await self.units.unit.settle(outcome_of(self.status), between_chunks)

    async def pass_on(self, message: Message) -> None:
        """Send what was held back and this, unless a client that counts bytes has the whole body before its end."""
        if self.completes_length(message) and self.phase is not Phase.AFTER:
            self.held.append(message)
            return
        while self.held:
            await self.send_to(self.held.pop(0))
        await self.send_to(message)

    def report(self, unit: Unit, settled: Settled, status: int) -> None:
        """One warning a response, and none to a client that has left."""
        if not (self.warned or self.gone):
            self.warned = report(unit, settled, status)

    def is_final(self, message: Message, kind: str) -> bool:
        if kind in ("http.response.body", "http.response.zerocopysend"):
            return not self.trailers and not message.get("more_body", False)
        if kind == "http.response.trailers":
            return not message.get("more_trailers", False)
        return kind == "http.response.pathsend"

    def completes_length(self, message: Message) -> bool:
        """Whether a client that counts bytes has the whole body with this chunk."""
        if self.left is None:
            return False
        self.left -= len(message.get("body", b""))
        return self.left <= 0

    async def finish(self) -> None:
        """The last settling: after it the response is complete, and its sessions are over."""
        unit = self.units.unit
        if unit is not None:
            self.report(unit, await unit.finish(outcome_of(self.status)), self.status)
        self.units.unit = None
        self.units.reads_only = False
        self.phase = Phase.AFTER

    async def returned(self) -> None:
        """The app is through: what came after the response is kept, and an unfinished response is not.

        A response that was cut off, in its start or in its body, was over at that point.
        """
        unit = self.units.unit
        try:
            if unit is not None and (self.phase is Phase.AFTER or (self.cut and self.phase is not Phase.BROKEN)):
                await unit.finish(always)
        finally:
            await self.close_units(None)
        if self.phase is Phase.FAILED:
            await self.answer_failure(None)

    async def close_units(self, error: BaseException | None) -> None:
        unit, self.units.unit = self.units.unit, None
        try:
            if self.parting is not None:
                await self.parting
            if unit is not None:
                await unit.close()
        except Exception as failure:
            if error is None:
                raise
            error.add_note(f"transept: while closing {self.describe()}: {failure!r}")

    async def answer_failure(self, unwound: Exception | None) -> None:
        """Nobody below answered: the app's exception handlers do, or the error goes on to the framework's 500."""
        failure = self.failure
        assert failure is not None
        if await self.app_answers(failure):
            return
        if isinstance(failure, CommitInDoubt):
            logger.error("%s: %s", self.describe(), failure, exc_info=failure)
            self.phase = Phase.AFTER
            for message in IN_DOUBT.messages():
                await self.send_to(message)
            return
        if unwound is not None and unwound is not failure and failure not in _chain(unwound):
            failure.add_note(f"transept: while the app unwound, it raised {unwound!r}")
        raise failure

    async def app_answers(self, failure: Exception) -> bool:
        """Whether one of the app's own exception handlers has answered; it may use sessions, as any code here may."""
        if self.gate.answer is None:
            return False
        try:
            answered = await self.gate.answer(self.scope, self.receive, self.send, failure)
        except BaseException as error:
            await self.close_units(error)
            raise
        if answered:
            await self.returned()
        return answered


class _WebSocket:
    """One WebSocket: a unit for each message received, over the same sessions, and nothing held while the app waits.

    What the app has written is committed before the next message is awaited, and before anything is sent, so that the
    other side is never told of what may not be kept. The commit mode governs HTTP responses only.
    """

    __slots__ = ("gate", "receive_from", "scope", "send_to", "units")

    def __init__(self, gate: ASGIGate, scope: Scope, receive: Receive, send: Send) -> None:
        self.gate = gate
        self.scope = scope
        self.receive_from = receive
        self.send_to = send
        self.units = UnitScope(LOOP, self.describe, gate.registry)
        scope[SCOPE_KEY] = self.units
        _make_lazy(scope, self.units, gate.registry)

    def describe(self) -> str:
        return f"WebSocket {self.scope.get('path', '')}"

    async def run(self) -> None:
        token = CURRENT.set(self.units)
        try:
            await self.gate.app(self.scope, self.receive, self.send)
            await self.end_message()
        finally:
            unit, self.units.unit = self.units.unit, None
            if unit is not None:
                await unit.close()
            self.units.closed = True
            CURRENT.reset(token)

    async def receive(self) -> Message:
        await self.end_message()
        return await self.receive_from()

    async def send(self, message: Message) -> None:
        if self.units.unit is not None:
            await self.units.unit.settle(always, _is_reading)
        await self.send_to(message)

    async def end_message(self) -> None:
        unit = self.units.unit
        if unit is not None:
            await unit.settle(always)
            unit.renew()


def _is_reading(database: Database, handle: Handle) -> bool:
    return handle.reading()


def _content_length(message: Message) -> int | None:
    for name, value in message.get("headers", ()):
        if name.lower() == b"content-length":
            return int(value)
    return None


def _chain(error: BaseException | None) -> list[BaseException]:
    """The error and those that it was raised from or during."""
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return chain
