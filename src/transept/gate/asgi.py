"""The commit gate for ASGI: the start of a response waits until its work is settled.

    open -> settling -> started -> after
    when settling fails: open -> failed -> (answered by somebody), started -> broken

Rule 1: `http.response.start` is passed on after every database of the request has ended its transaction.
Rule 2: a failed start was never sent. The error is raised out of `send`, so the app unwinds; whoever below answers
anew is heard, then the app's own exception handlers are asked, and only then is the error raised on.
Rule 3: between chunks of a body, transactions end unless a result is being read, a block is open, or the database is
manual; the message that completes the body waits for the last settling.
Rule 4: what comes after the response has one fresh unit, kept when the app returns, rolled back when it raises.

One pure ASGI object a request; nothing is made for a request that asks for no session.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from enum import Enum
from typing import Any

from transept.context import CURRENT, LOOP, Gate, UnitScope
from transept.database import Database, Databases
from transept.gate.answer import READING_METHODS, always, answer_to, at_start, between_chunks, outcome_of, report
from transept.gate.protocol import SCOPE_KEY, ASGIApp, BeforeSend, Message, Receive, Scope, Send, unit_scope
from transept.gate.state import Lazy, make_lazy
from transept.gate.websocket import Socket, parted
from transept.unit import BeforeCommit, Settled, Unit

__all__ = ["SCOPE_KEY", "ASGIGate", "ASGIHTTPDBSessionMiddleware", "Request", "raised_from", "unit_scope"]

Answer = Callable[[Scope, Receive, Send, Exception], Awaitable[bool]]

logger = logging.getLogger("transept")

RARE = {
    "counts": False,
    "cut": False,
    "gone": False,
    "hear": None,
    "left": None,
    "passed": False,
    "place": None,
    "sent": False,
    "warned": False,
}


class Phase(Enum):
    OPEN = "open"
    FAILED = "failed"
    STARTED = "started"
    BROKEN = "broken"
    AFTER = "after"


OPEN, FAILED, STARTED, BROKEN, AFTER = Phase


class ASGIGate:
    """Middleware that holds the start of each response back until the request's unit of work is settled.

    Args:
        app: the ASGI app.
        registry: the databases whose sessions requests may ask for; a `Registry`, one database or several.
        answer: called with an error that kept a response from starting, when nobody below has answered; sends a
            response and returns True, or returns False. A framework's own exception handlers are called here.
        before_commit: awaited with each session that is going to be committed, while it can still be used.
        on_failed_start: called with the ASGI scope when a start was not passed on, for frameworks that keep note.
        runs_ahead: called with the scope and the start of a response; whether the framework has begun to run its body
            already, in a task of its own. What is being read then, and what is manual, is not settled at the start.

    Place it below middleware that adds headers to every response, such as CORS.
    """

    before_send: BeforeSend | None
    """Awaited with each message and the scope before anything is settled for that message. What it raises is raised out
    of `send`; at the start of a response it rolls the unit back."""

    def __init__(
        self,
        app: ASGIApp,
        registry: Databases | Database | Iterable[Database],
        *,
        answer: Answer | None = None,
        before_commit: BeforeCommit | None = None,
        on_failed_start: Callable[[Scope], None] | None = None,
        runs_ahead: Callable[[Scope, Message], bool] | None = None,
    ) -> None:
        self.app = app
        self.registry = Databases.of(registry, "registry")
        self.on_state: Lazy = self.registry.on_state()  # by name, what lies on the state of requests
        self.before_commit = before_commit
        self.answer = answer
        self.on_failed_start = on_failed_start
        self.before_send = None
        self.runs_ahead = runs_ahead

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        outer: UnitScope | None = scope.get(SCOPE_KEY)
        if scope["type"] != "http" or (outer is not None and not outer.closed):
            await self.serve_otherwise(outer, scope, receive, send)
            return
        request = Request(self, scope, receive, send)
        token = CURRENT.set(request)
        try:
            await self.app(scope, request.receive, request.send if self.before_send is None else request.send_told)
        except BaseException as error:
            await request.unwound(error)
        else:
            if request.unit is not None or request.failure is not None or request.parting is not None:
                await request.returned()
        finally:
            request.closed = True
            if request.outermost is not None:
                request.settle_at_the_gate(request.outermost)
            # What names it, and no more: a cycle would be left for the garbage collector.
            request.scope = {"method": scope["method"]}
            CURRENT.reset(token)

    async def serve_otherwise(self, outer: UnitScope | None, scope: Scope, receive: Receive, send: Send) -> None:
        if outer is not None and not outer.closed:
            # A gate further out holds this request already: one unit, settled once, by it.
            make_lazy(scope, outer, self.on_state)
            if isinstance(outer, Request) and (self.on_failed_start is not None or self.before_send is not None):
                outer.hear = self.before_send
                send = outer.settling(scope, send, self.on_failed_start)
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await Socket(self, scope, receive, send).run()
        else:
            await self.app(scope, receive, send)


class ASGIHTTPDBSessionMiddleware(ASGIGate):
    """`ASGIGate` for apps that pass their databases to `db_session`: ``ASGIHTTPDBSessionMiddleware(app)``.

    Args:
        app: the ASGI app, of any framework.
        before_commit: awaited with each session that is going to be committed.
        registry: databases to be known by name, too.
    """

    def __init__(
        self,
        app: ASGIApp,
        before_commit: BeforeCommit | None = None,
        *,
        registry: Databases | Database | Iterable[Database] | None = None,
    ) -> None:
        super().__init__(app, Databases() if registry is None else registry, before_commit=before_commit)


class Request(UnitScope):
    """One HTTP request: what has been sent, and the unit of the moment."""

    __slots__ = (
        "counts",
        "cut",
        "failure",
        "gate",
        "gone",
        "hear",
        "held",
        "left",
        "outermost",
        "parting",
        "passed",
        "path",
        "phase",
        "place",
        "receive_from",
        "scope",
        "send_to",
        "sent",
        "started",
        "warned",
    )

    host = LOOP
    counts: bool
    cut: bool
    gone: bool
    hear: BeforeSend | None  # of a gate further in
    passed: bool  # whether a part of the body has been passed on
    place: object  # where responses are settled, if further in than the gate
    sent: bool  # whether the server has a start that was settled further in
    left: int | None  # bytes that were announced and are not sent yet
    warned: bool

    def __init__(self, gate: ASGIGate, scope: Scope, receive: Receive, send: Send) -> None:
        # What the base class does, here: each request makes one of these.
        self.unit = None
        self.closed = False
        self.outer = CURRENT.get()
        self.within = None
        self.gate = gate
        self.scope = scope
        self.path: str = scope["path"]  # as it came: a framework may rewrite it
        self.receive_from = receive
        self.send_to = send
        self.phase = OPEN
        self.failure: Exception | None = None
        self.parting: asyncio.Future[None] | None = None
        self.held: Sequence[Message] = ()
        self.outermost: Send | None = None  # the server's, where responses are settled further in than the gate
        scope[SCOPE_KEY] = self
        if gate.on_state:
            make_lazy(scope, self, gate.on_state)

    def __getattr__(self, name: str) -> Any:
        """What few requests ever set."""
        try:
            return RARE[name]
        except KeyError:
            raise AttributeError(name) from None

    def may_write(self) -> bool:
        return self.phase is AFTER or self.scope["method"] not in READING_METHODS

    def origin(self) -> Gate:
        return self.gate

    def describe(self) -> str:
        after = "what came after " if self.phase is AFTER else ""
        return f"{after}{self.scope['method']} {self.path}"

    def failed(self) -> Exception | None:
        """Why the response could not start, if nobody has answered anew."""
        return self.failure if self.phase is FAILED else None

    async def unwound(self, error: BaseException) -> None:
        """The app has raised."""
        if self.outermost is not None:
            self.settle_at_the_gate(self.outermost)
        await self.close_units(error)
        if self.phase is FAILED and isinstance(error, Exception):
            await self.answer_failure(error)
        elif self.phase is not OPEN or not await self.gate_answers(error):
            raise error

    async def receive(self) -> Message:
        message = await self.receive_from()
        if message["type"] == "http.disconnect" and not self.gone:
            self.client_left()
        return message

    def client_left(self) -> None:
        """Before the start, nothing will be kept. In a body, its unit ends, what was not settled is rolled back, and
        what comes from now on has a unit of its own: the framework may stop the body where it stands, and go on with
        background tasks."""
        if self.phase in (OPEN, FAILED):
            self.gone = True
        elif self.phase is STARTED:
            self.gone = self.cut = True
            unit, self.unit = self.unit, None
            if unit is not None:
                self.parting = asyncio.ensure_future(unit.close())

    def send(self, message: Message) -> Awaitable[None]:
        """Where nothing is to be settled, nothing waits: the message is the server's at once."""
        phase = self.phase
        if self.outermost is not None:
            return self.send_late(message, self.outermost)
        if phase is OPEN:
            if self.unit is None and message["type"] == "http.response.start":
                self.phase = STARTED
                self.started = message
                return self.send_to(message)
        elif phase is STARTED and not self.held and self.is_final(message):
            unit = self.unit
            if unit is None or unit.end_idle():
                self.unit = None
                self.phase = AFTER
                return self.send_to(message)
        return self.send_settled(message)

    async def send_told(self, message: Message) -> None:
        """Where somebody is to hear of each message first."""
        if self.outermost is not None:
            await self.send_late(message, self.outermost)
        else:
            await self.send_settled(message)

    async def send_settled(self, message: Message) -> None:
        if message["type"] != "http.response.start":
            await self.tell(message)
        if self.phase is STARTED:
            try:
                await self.settle_body(message)
            except Exception as error:
                seen = self.outermost is None or self.sent or self.passed
                self.phase, self.failure = BROKEN if seen else FAILED, error
                raise
            await self.pass_on(message)
        elif self.phase is AFTER:
            await self.send_to(message)
        elif message["type"] == "http.response.start" and self.phase is not BROKEN:
            await self.start(message)
        elif self.failure is not None:
            raise self.failure
        else:
            await self.send_to(message)

    async def start(self, message: Message) -> None:
        await self.settle_ahead(message)
        self.phase, self.started = STARTED, message
        self.held, self.counts = (), False  # of a body whose failure this answers
        await self.send_to(message)

    async def settle_ahead(self, message: Message) -> None:
        """Settle for this start of a response; it has not been passed on yet, and is not if this raises."""
        try:
            await self.tell_start(message)
            if self.unit is not None:
                await self.settle_start(self.unit, message)
        except Exception as error:
            self.fail(error)
            raise
        except BaseException:
            self.cut = True
            await self.close_units(None)
            raise

    def settling(self, scope: Scope, send: Send, failed: Callable[[Scope], None] | None) -> Send:
        """A `send` for a place further in than the gate: what stands between them never sees what is not kept.

        From the first message on, the gate only passes on what comes by: it may come late, or from another task.
        """

        here = object()

        async def settled(message: Message) -> None:
            if self.place not in (None, here) and self.phase is not FAILED:
                await send(message)  # a place further in still has settled this
                return
            if self.outermost is None:
                self.outermost = self.send_to
            self.place, self.send_to = here, send
            try:
                await self.send_settled(message)
            except Exception:
                if self.phase is FAILED and failed is not None:
                    failed(scope)
                raise

        return settled

    async def send_late(self, message: Message, outermost: Send) -> None:
        """What was settled further in comes by. Whoever stands between may have written since, or answer anew."""
        starts = message["type"] == "http.response.start"
        if self.phase is FAILED and starts:
            self.settle_at_the_gate(outermost)
            await self.send_settled(message)
            return
        if self.phase in (FAILED, BROKEN) and self.failure is not None:
            raise self.failure
        if starts:
            try:
                if self.unit is not None and not self.unit.blocks:
                    await self.unit.settle(outcome_of(message["status"]), between_chunks)
            except Exception as error:
                self.fail(error)
                raise
            self.sent = True
        await outermost(message)

    def settle_at_the_gate(self, outermost: Send) -> None:
        """The place further in has had its say; and what it held of this request made a cycle."""
        self.place, self.send_to, self.outermost = None, outermost, None

    def fail(self, error: Exception) -> None:
        self.phase, self.failure = FAILED, error
        if self.gate.on_failed_start is not None:
            self.gate.on_failed_start(self.scope)

    async def tell(self, message: Message) -> None:
        """Those who hear of each message, of this gate and of one further in."""
        for before_send in (self.gate.before_send, self.hear):
            if before_send is not None:
                await before_send(message, self.scope)

    async def tell_start(self, message: Message) -> None:
        try:
            await self.tell(message)
        except Exception:
            if self.unit is not None:
                await self.unit.settle(_nothing)
            raise

    async def settle_start(self, unit: Unit, message: Message) -> None:
        if self.gone:
            unit.doom("the client had left")
        status: int = message["status"]
        runs_ahead = self.gate.runs_ahead is not None and self.gate.runs_ahead(self.scope, message)
        if not (runs_ahead and unit.blocks):
            settled = await unit.settle(outcome_of(status), between_chunks if runs_ahead else at_start(status))
            self.report(unit, settled, status)

    async def settle_body(self, message: Message) -> None:
        if self.is_final(message):
            await self.finish()
        elif self.unit is not None and not self.unit.blocks:
            await self.unit.settle(outcome_of(self.started["status"]), between_chunks)

    async def pass_on(self, message: Message) -> None:
        """Send what was held back and this, unless a client that counts bytes has the whole body before its end."""
        if self.phase is not AFTER and self.completes_length(message):
            self.held = [*self.held, message]
            return
        self.passed = True
        held, self.held = self.held, ()
        for earlier in held:
            await self.send_to(earlier)
        await self.send_to(message)

    def report(self, unit: Unit, settled: Settled, status: int) -> None:
        """One warning a response, and none to a client that has left."""
        if not (self.warned or self.gone):
            self.warned = report(unit, settled, status)

    def is_final(self, message: Message) -> bool:
        kind: str = message["type"]
        if kind == "http.response.body" or kind == "http.response.zerocopysend":
            more: object = message.get("more_body") or self.started.get("trailers")
            return not more
        if kind == "http.response.trailers":
            return not message.get("more_trailers", False)
        return kind == "http.response.pathsend"

    def completes_length(self, message: Message) -> bool:
        """Whether a client that counts bytes has the whole body with this chunk."""
        if not self.counts:
            self.counts, self.left = True, _content_length(self.started)
        if self.left is None:
            return False
        self.left -= len(message.get("body", b""))
        return self.left <= 0

    async def finish(self) -> None:
        """The last settling: after it the response is complete, and its sessions are over."""
        unit, status = self.unit, self.started["status"]
        if unit is not None:
            self.report(unit, await unit.finish(outcome_of(status)), status)
        self.unit = None
        self.phase = AFTER

    async def returned(self) -> None:
        """The app is through: what came after the response is kept, and an unfinished response is not.

        A response that was cut off, in its start or in its body, was over at that point.
        """
        unit = self.unit
        try:
            if unit is not None and (self.phase is AFTER or (self.cut and self.phase is not BROKEN)):
                await unit.finish(always)
        finally:
            await self.close_units(None)
        if self.phase is FAILED:
            await self.answer_failure(None)

    async def close_units(self, error: BaseException | None) -> None:
        unit, self.unit = self.unit, None
        try:
            try:
                if self.parting is not None:
                    await LOOP.shielded(parted(self.parting))
            finally:
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
        for error in raised_from(failure, unwound):
            if await self.app_answers(error):
                return
        if await self.gate_answers(failure):
            return
        if unwound is not None and unwound is not failure and failure not in _chain(unwound):
            failure.add_note(f"transept: while the app unwound, it raised {unwound!r}")
        raise failure

    async def gate_answers(self, failure: BaseException) -> bool:
        """Whether this is one of the few errors that a gate has an answer of its own to."""
        answer = answer_to(failure)
        if answer is None:
            return False
        logger.error("%s: %s", self.describe(), failure, exc_info=failure)
        self.phase = AFTER
        for message in answer.messages():
            await self.send_to(message)
        return True

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


def _nothing(database: Database | None) -> bool:
    return False


def _content_length(message: Message) -> int | None:
    for name, value in message.get("headers", ()):
        if name.lower() == b"content-length":
            return int(value)
    return None


def raised_from(failure: Exception, unwound: Exception | None) -> list[Exception]:
    """What the app has made of the failure while it unwound, the last first, and the failure itself.

    A plain RuntimeError is not the app's: Starlette raises it for a handled error after a start.
    """
    chain = _chain(unwound)
    made = chain[: chain.index(failure)] if failure in chain else []
    return [*(error for error in made if isinstance(error, Exception) and type(error) is not RuntimeError), failure]


def _chain(error: BaseException | None) -> list[BaseException]:
    """The error and those that it was raised from or during."""
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return chain
