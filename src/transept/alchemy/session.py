"""Sessions with one user at a time: the guard stands in the blocking `Session` class.

Every path of an `AsyncSession` (lazy loads, `run_sync`, streams) ends there, in the greenlet of the task that awaits.
A session that a unit hands out is SQLAlchemy's own, or the user's class; only its class is exchanged for a guarded
subclass, so the maker that made it stays untouched.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

from sqlalchemy import TextClause, event
from sqlalchemy.engine import Connection, CursorResult, Engine
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, SessionTransaction, SessionTransactionOrigin
from sqlalchemy.util import await_only

from transept._portal import Bridge
from transept._sqlite import MAY_WRITE
from transept.alchemy.across import across, run_across
from transept.alchemy.truth import began, joined, may_be_gone, watch, why_gone
from transept.errors import IN_BLOCK, CommitFailed, inside_a_block
from transept.turn import TaskTurn, ThreadTurn
from transept.unit import Hooks

__all__ = ["Seat", "guard", "is_clean", "new_guarded", "note_live", "seat_of", "unguard", "writes"]

GUARDED = [
    "begin_nested",
    "bulk_insert_mappings",
    "bulk_save_objects",
    "bulk_update_mappings",
    "commit",
    "connection",
    "delete",
    "execute",
    "flush",
    "get",
    "get_one",
    "merge",
    "prepare",
    "refresh",
    "rollback",
    "scalar",
    "scalars",
]
HARMLESS_AFTER_THE_END = ("close", "reset", "invalidate", "rollback")
HANDED_OUT = (SessionTransactionOrigin.BEGIN, SessionTransactionOrigin.BEGIN_NESTED)

READS = re.compile(r"\s*(select|show|values|explain|pragma|table|set|savepoint|release|rollback)\b", re.IGNORECASE)


class Seat:
    """What Transept knows about one session: its turn, its transaction's connections, what is being read."""

    __slots__ = (
        "app_ended",
        "bridge",
        "connections",
        "cursors",
        "first_use",
        "hooks",
        "key",
        "marks",
        "may_write",
        "owner",
        "route",
        "savepoints",
        "turn",
        "wrote",
    )

    def __init__(
        self,
        key: str,
        turn: TaskTurn | ThreadTurn,
        hooks: Hooks,
        *,
        may_write: bool | None = None,
        first_use: Callable[[], None] | None = None,
        route: Callable[[Engine], Engine] | None = None,
    ) -> None:
        self.key = key
        self.turn = turn
        self.hooks = hooks
        self.may_write = may_write
        self.first_use = first_use
        self.route = route
        self.owner: Any = None  # its database
        self.bridge: Bridge | None = None  # of plain code to an async session
        self.connections: dict[Connection, None] = {}
        self.cursors: WeakSet[LiveCursor] | tuple[()] = ()
        self.marks: dict[SessionTransaction, int] = {}
        self.savepoints: set[SessionTransaction] = set()  # of the unit's blocks
        self.wrote = False
        self.app_ended: bool | None = None

    def enter(self) -> bool | None:
        """Take the turn for one call of the app's. What comes back is for `leave`."""
        while (settled := self.turn.take()) is not None:
            await_only(settled)
        outside = None
        if self.may_write is not None:
            outside = MAY_WRITE.get()
            MAY_WRITE.set(self.may_write)
        if self.first_use is not None:
            self._use_for_the_first_time(outside)
        return outside

    def leave(self, outside: bool | None) -> None:
        """A session of the app's own, which may come next in this context, begins as it would without this one."""
        if outside is not None:
            MAY_WRITE.set(outside)
        self.turn.leave()

    def check(self) -> None:
        """Raise if a COMMIT would not keep the transaction, or must not."""
        if self.hooks.failed_block is not None:
            raise CommitFailed(self.key, self.hooks.failed_block, IN_BLOCK)
        self.check_transactions()

    def check_transactions(self) -> None:
        """Raise if the transaction is gone."""
        for connection in self.connections:
            reason = why_gone(connection)
            if reason is not None:
                raise CommitFailed(self.key, reason)

    def sure(self) -> bool:
        """Whether nothing is being read and `check` would find nothing. No I/O."""
        if self.cursors or self.hooks.failed_block is not None:
            return False
        for connection in self.connections:  # noqa: SIM110 - each request asks
            if may_be_gone(connection):
                return False
        return True

    def close_cursors(self) -> None:
        """What is still being read ends with its transaction."""
        cursors, self.cursors = self.cursors, ()
        for cursor in list(cursors):
            cursor.close()

    def _use_for_the_first_time(self, outside: bool | None) -> None:
        try:
            if self.first_use is not None:
                self.first_use()
        except BaseException:
            self.leave(outside)
            raise
        self.first_use = None


class LiveCursor:
    """The driver's cursor of a result that is still being read; fetching from it takes the session's turn."""

    def __init__(self, cursor: Any, seat: Seat) -> None:
        self._cursor = cursor
        self._seat = seat

    def fetchone(self) -> Any:
        return self._fetch(self._cursor.fetchone)

    def fetchmany(self, *size: int) -> Any:
        return self._fetch(self._cursor.fetchmany, *size)

    def fetchall(self) -> Any:
        return self._fetch(self._cursor.fetchall)

    def close(self) -> None:
        run_across(self._seat, self._cursor.close)

    def _fetch(self, fetch: Callable[..., Any], *arguments: Any) -> Any:
        return run_across(self._seat, self._fetch_in_turn, fetch, *arguments)

    def _fetch_in_turn(self, fetch: Callable[..., Any], *arguments: Any) -> Any:
        outside = self._seat.enter()
        try:
            return fetch(*arguments)
        finally:
            self._seat.leave(outside)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)


class Listening(Session):
    """Stands below every guarded class and has the listeners: SQLAlchemy forgets no class that was listened to."""


def guarded_class(plain: Any) -> Any:
    """A subclass of this session class whose methods take the session's turn.

    One is made for each class, and kept there: a maker has a class of its own, and they go together.
    """
    kept = plain.__dict__.get("transept_guarded")
    if kept is not None:
        return kept
    methods: dict[str, Any] = {name: _taking_turn(getattr(plain, name), name) for name in GUARDED}
    for name in ("commit", "rollback"):
        methods[name] = _outside_of_blocks(methods[name], name)
    for name in HARMLESS_AFTER_THE_END:
        methods[name] = _harmless_after_the_end(methods.get(name) or _taking_turn(getattr(plain, name), name))
    bases = (Listening,) if issubclass(Listening, plain) else (plain, Listening)
    made = type(plain.__name__, bases, {**methods, "__module__": plain.__module__, "transept_plain": plain})
    plain.transept_guarded = made
    return made


def _seat_of(transaction: SessionTransaction) -> Seat:
    seat: Seat = transaction.session.transept_seat  # type: ignore[attr-defined]
    return seat


def new_guarded(maker: Any) -> AsyncSession:
    """A new session of this maker, whose class `guard` need not exchange: Python is faster with it.

    That is possible where SQLAlchemy's own maker makes SQLAlchemy's own kind of session.
    """
    made_of: Any = maker.class_ if type(maker) is async_sessionmaker else None
    options = {}
    if made_of is not None and made_of.__init__ is AsyncSession.__init__:
        plain = maker.kw.get("sync_session_class") or made_of.sync_session_class
        options["sync_session_class"] = guarded_class(plain)
    session: AsyncSession = maker(**options)
    return session


def guard(session: Session, seat: Seat) -> None:
    """Make this session take turns from now on."""
    session.transept_seat = seat  # type: ignore[attr-defined]
    made_as: Any = type(session)
    guarded = guarded_class(getattr(made_as, "transept_plain", made_as))
    wanted = guarded if seat.route is None else routed_class(guarded)
    if wanted is not made_as:
        session.__class__ = wanted
    begun = session.get_transaction()
    if begun is not None:  # the app's own session, with a transaction of which nothing was noted
        for connection, *_ in begun._connections.values():
            seat.connections[connection] = None
            watch(connection.engine)
            joined(connection)


@functools.cache
def routed_class(guarded: Any) -> Any:
    """A subclass of this guarded class whose sessions connect with the engine that their seat's route gives."""

    def get_bind(self: Any, *arguments: Any, **keywords: Any) -> Any:
        bind = guarded.get_bind(self, *arguments, **keywords)
        return self.transept_seat.route(bind) if isinstance(bind, Engine) else bind

    names = {"get_bind": functools.wraps(guarded.get_bind)(get_bind), "__module__": guarded.__module__}
    return type(guarded.__name__, (guarded,), names)


def unguard(session: Session) -> None:
    """Make this session what it was before `guard`."""
    plain: Any = type(session)
    session.__class__ = getattr(plain, "transept_plain", plain)


def seat_of(session: Session) -> Seat | None:
    """What is known of this session; None unless a unit of work has it."""
    seat: Seat | None = getattr(session, "transept_seat", None) if hasattr(type(session), "transept_plain") else None
    return seat


def _taking_turn(method: Callable[..., Any], name: str) -> Callable[..., Any]:
    keeps_result = name in ("execute", "scalars")
    notes_write = name in ("execute", "scalars", "scalar")

    @functools.wraps(method)
    def guarded(self: Any, *arguments: Any, **keywords: Any) -> Any:
        seat: Seat = self.transept_seat
        outside = seat.enter()
        try:
            if notes_write and not seat.wrote:
                seat.wrote = writes(arguments[0] if arguments else keywords.get("statement"))
            result = method(self, *arguments, **keywords)
            if keeps_result:
                note_live(result, seat)
            return result
        finally:
            seat.leave(outside)

    return guarded


def _outside_of_blocks(method: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The app's own end of a transaction would take the savepoints of open blocks with it."""

    @functools.wraps(method)
    def guarded(self: Any, *arguments: Any, **keywords: Any) -> Any:
        seat: Seat = self.transept_seat
        if seat.savepoints and not seat.turn.settling:
            raise inside_a_block(f"session.{name}() on database {seat.key!r}")
        return method(self, *arguments, **keywords)

    return guarded


def is_clean(session: Session) -> bool:
    """Whether a flush would do nothing. The public attributes make two sets for the same answer."""
    return not (session.identity_map.check_modified() or session._new or session._deleted)


def _harmless_after_the_end(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def guarded(self: Any, *arguments: Any, **keywords: Any) -> Any:
        if self.transept_seat.turn.over():
            return None
        return method(self, *arguments, **keywords)

    return guarded


# The end of `session.begin()` and `session.begin_nested()` blocks goes past the session's own methods.
GUARDED_TRANSACTION: Any = type(
    "SessionTransaction",
    (SessionTransaction,),
    {
        "__module__": SessionTransaction.__module__,
        "transept_seat": property(_seat_of),
        "commit": across(_taking_turn(SessionTransaction.commit, "commit")),
        "rollback": across(_harmless_after_the_end(_taking_turn(SessionTransaction.rollback, "rollback"))),
        "close": across(_harmless_after_the_end(_taking_turn(SessionTransaction.close, "close"))),
    },
)


def note_live(given: Any, seat: Seat) -> None:
    """Follow a result that still reads from the connection: a server-side cursor, or any of blocking SQLite."""
    result = getattr(given, "_real_result", None) or given
    source: Any = getattr(result, "raw", None) or result
    cursor = source.cursor if issubclass(type(source), CursorResult) else None
    if cursor is not None and not isinstance(cursor, LiveCursor) and _is_live(source):
        source.cursor = LiveCursor(cursor, seat)
        if isinstance(seat.cursors, tuple):
            seat.cursors = WeakSet()
        seat.cursors.add(source.cursor)


def _is_live(source: Any) -> bool:
    dialect = source.dialect
    return source.context._is_server_side or (dialect.name == "sqlite" and not dialect.is_async)


def writes(statement: Any) -> bool:
    """Whether a statement of SQLAlchemy may change something."""
    if isinstance(statement, TextClause):
        return READS.match(statement.text) is None
    return bool(getattr(statement, "is_dml", False) or getattr(statement, "is_ddl", False))


def _after_begin(session: Any, transaction: SessionTransaction, connection: Connection) -> None:
    seat: Seat = session.transept_seat
    if connection not in seat.connections:
        seat.connections[connection] = None
        watch(connection.engine)
        began(connection)


def _before_commit(session: Any) -> None:
    """The app's own commits, too, fail when their transaction is gone. Also told of savepoints."""
    seat: Seat = session.transept_seat
    if not (seat.turn.settling or session.in_nested_transaction()):
        seat.check()


def _after_flush(session: Any, context: Any) -> None:
    session.transept_seat.wrote = True


def _after_commit(session: Any) -> None:
    _ended(session, committed=True)


def _after_rollback(session: Any) -> None:
    _ended(session, committed=False)


def _ended(session: Any, *, committed: bool) -> None:
    """Also told of savepoints, which end nothing."""
    if session.in_nested_transaction():
        return
    seat: Seat = session.transept_seat
    if seat.connections and not seat.turn.settling:
        seat.app_ended = committed
    seat.wrote = False
    seat.connections.clear()
    seat.marks.clear()


def _after_transaction_create(session: Any, transaction: SessionTransaction) -> None:
    if transaction.nested:
        seat: Seat = session.transept_seat
        seat.marks[transaction] = seat.hooks.mark()
    if transaction.origin in HANDED_OUT:
        transaction.__class__ = GUARDED_TRANSACTION


def _after_transaction_end(session: Any, transaction: SessionTransaction) -> None:
    """Also told when the app closes its session and goes on with it."""
    seat: Seat = session.transept_seat
    seat.savepoints.discard(transaction)
    if transaction.parent is None:
        seat.connections.clear()


def _after_soft_rollback(session: Any, previous: SessionTransaction) -> None:
    seat: Seat = session.transept_seat
    mark = seat.marks.pop(previous, None)
    if mark is not None:
        seat.hooks.drop_since(mark)


for _listener in (
    _after_begin,
    _before_commit,
    _after_flush,
    _after_commit,
    _after_rollback,
    _after_transaction_create,
    _after_transaction_end,
    _after_soft_rollback,
):
    event.listen(Listening, _listener.__name__.removeprefix("_"), _listener)
