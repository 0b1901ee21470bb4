"""The unit of work: the sessions that one request, task or message opened, settled together.

    open -> (doomed) -> settled, as often as there is something to settle -> ended

Rule 1: all databases end together (`transept.settling`).
Rule 2: hooks run when all have committed, in the order registered, before anybody is told.
Rule 3: every session is ended, whatever fails on the way; an error of cleaning up becomes a note on the first error.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, TypeVar, overload

from transept._bridge import is_async
from transept._portal import Bridge
from transept.block import INNERMOST, Block
from transept.database import (
    Adopts,
    Bridged,
    Connects,
    Database,
    Databases,
    Gives,
    Handle,
    HasConnection,
    HasSession,
    must_prepare,
)
from transept.errors import CommitFailed, OutsideScope, UsageError, inside_a_block
from transept.hooks import Hook, Hooks
from transept.settling import Host, Keeps, Leaf, Part, Settled, Settling, Spare

__all__ = ["ASKING", "BeforeCommit", "Block", "Hooks", "Host", "Settled", "Unit"]

S = TypeVar("S")
BeforeCommit = Callable[[Any], Any]

ASKING: ContextVar[bool] = ContextVar("transept_asking_before_commit", default=False)
"""Whether this code is called by a `before_commit`, which is not asked about its own work."""

logger = logging.getLogger("transept")


class Unit:
    """A unit of work. Get one from `unit_of_work()` or `current_unit()`; its methods do no I/O unless awaited."""

    __slots__ = (
        "_app_ended",
        "_doomed",
        "_ended",
        "_handles",
        "_registry",
        "before_commit",
        "blocks",
        "hooks",
        "host",
        "name",
        "reads_only",
    )

    def __init__(self, host: Host, name: str, registry: Databases | None = None, *, reads_only: bool = False) -> None:
        self.host = host
        self._registry = registry
        self._handles: dict[Database, Handle] = {}
        self._app_ended: dict[Database, bool] = {}
        self._doomed: str | None = None
        self._ended = False
        self.before_commit: BeforeCommit | None = None
        self.hooks = Hooks()
        self.blocks: list[Block] = self.hooks.blocks
        self.name = name
        self.reads_only = reads_only

    # What the app calls.

    @overload
    def session(self, database: Gives[S]) -> S: ...
    @overload
    def session(self, database: str | None = None) -> Any: ...
    def session(self, database: Any = None) -> Any:
        """The unit's session of this database, the same object each time; it lives as long as the unit.

        Takes the database, its key, or nothing where there is one (or a default). Takes no connection: the first
        statement does.

        Raises:
            OutsideScope: the unit is over.
            UsageError: an async database in a blocking unit, or one that must be awaited (`prepared`).
        """
        found = self.database(database)
        return self._part(found).session

    @overload
    def connection(self, database: Connects[S]) -> S: ...
    @overload
    def connection(self, database: Database | str | None = None) -> Any: ...
    def connection(self, database: Any = None) -> Any:
        """The driver's connection in the unit, the same object each time: a handle that connects at first use.

        Raises:
            OutsideScope: the unit is over.
            UsageError: this kind of database has none.
        """
        found = self.database(database)
        handle = self._part(found)
        if not isinstance(handle, HasConnection):
            raise UsageError(
                f"database {found.key!r} is a SQLAlchemy one, whose connection is session.connection(): only raw "
                "databases have one of their own."
            )
        return handle.connection

    @overload
    async def prepared(self, database: Gives[S]) -> S: ...
    @overload
    async def prepared(self, database: str | None = None) -> Any: ...
    async def prepared(self, database: Any = None) -> Any:
        """As `session`, after what the database has to await before. Callers that race get the same session."""
        found = self.database(database)
        handle = self._handles.get(found)
        if handle is None:
            if must_prepare(found):
                await found.prepare()
            handle = self._handles.get(found) or self._open(found)
        return handle.session

    def database(self, database: Any = None) -> Database:
        """The database that this key means, or the default; a database is itself.

        Raises:
            UsageError: the unit knows none by name.
            ImproperConfigurationError: no database has this key, or there is no default.
        """
        if database is None or isinstance(database, str):
            if not self._registry:
                raise UsageError(
                    f"the unit of work of {self.name} knows no database by name: pass the database itself, such as "
                    "db_session(connection)."
                )
            return self._registry.get(database)
        found: Database = database
        return found

    def adopt(self, database: Database, session: Any) -> None:
        """Make a session that the app made a part of this unit, which settles and ends it.

        Raises:
            UsageError: the unit has a session of this database, or the database cannot take one in.
        """
        if database in self._handles:
            raise UsageError(f"the unit of work of {self.name} has a session of database {database.key!r} already.")
        if not isinstance(database, Adopts):
            raise UsageError(f"database {database.key!r} cannot take in a session that was made elsewhere.")
        self._handles[database] = database.adopt(session, self.hooks, self.reads_only)

    def give_up(self, database: Database) -> Any:
        """Take the session of this database out of the unit, as it is, and return it; None if there is none."""
        handle = self._handles.pop(database, None)
        return database.give_up(handle) if handle is not None and isinstance(database, Adopts) else None

    def opened(self, database: Database) -> Any:
        """The session of this database if the unit has one already, else None."""
        return self._part(database).session if database in self._handles else None

    async def commit(self, database: Database) -> None:
        """Commit this database now, whatever will become of the unit. The next statement begins anew.

        Hooks run when no other database has anything open.

        Raises:
            UsageError: inside a block, whose end decides.
            CommitFailed: the unit is doomed, or the transaction is gone.
        """
        await self._end_now(database, True)

    async def rollback(self, database: Database) -> None:
        """Roll this database back now. The next statement begins anew."""
        await self._end_now(database, False)

    async def let_go(self, database: Database) -> None:
        """Give this database's connection back, and forget what its session has read. Uncommitted work is lost."""
        handle = self._handles.get(database)
        if handle is not None:
            self._refuse_inside_block(database, "close_db_session")
            if handle.wrote():
                await self.rollback(database)
            await self.host.shielded(self._let_go(database, handle))

    def has_open(self, database: Database) -> bool:
        """Whether a transaction is open on this database."""
        handle = self._handles.get(database)
        return handle is not None and handle.in_transaction()

    def in_block(self, database: Database) -> bool:
        """Whether a block is open whose end decides what becomes of this database's work."""
        return any(block.database in (None, database) for block in self.blocks)

    def doom(self, reason: str = "") -> None:
        """Nothing of this unit will be kept, whatever the outcome. Cannot be taken back."""
        self._doomed = reason or "doom() was called"

    @property
    def doomed(self) -> str | None:
        """Why nothing of this unit will be kept, or None."""
        return self._doomed

    def after_commit(self, hook: Hook) -> Hook:
        """Call `hook()` once all databases of the unit have committed, before the response is passed on.

        Hooks run in the order registered, a plain one in a worker thread where the unit is async. One that fails is
        logged and changes nothing. Dropped when the savepoint it was registered in rolls back.

        Raises:
            UsageError: an async callable in a blocking unit.
        """
        return self._register(True, hook)

    def after_rollback(self, hook: Hook) -> Hook:
        """Call `hook()` when the unit has rolled back; else as `after_commit`."""
        return self._register(False, hook)

    # What gates and blocks call.

    def busy(self) -> bool:
        """Whether any database has something to settle."""
        for handle in self._handles.values():  # noqa: SIM110 - a generator is dearer, and each request asks twice
            if handle.in_transaction():
                return True
        return False

    def awaits(self) -> bool:
        """Whether it uses an async database."""
        return any(not database.blocking for database in self._handles)

    def has_to_settle(self) -> bool:
        """Whether `settle` would do anything."""
        return self.busy() or self._has_more_to_settle()

    def _has_more_to_settle(self) -> bool:
        return bool(self.hooks) or self.hooks.failed_block is not None

    def handles(self) -> list[Part]:
        return list(self._handles.items())

    async def settle(self, keeps: Keeps, spare: Spare | None = None, *, last: bool = False) -> Settled:
        """End the open transactions, each as `keeps(database)` says, then run the hooks.

        ``keeps(None)`` decides for a unit that used no database. Those that `spare` names stay as they are, and then
        the hooks wait. With `last`, no statement comes in between this and the end of the unit. A cancellation
        meanwhile is raised when all is done.

        Raises:
            Exception: the error of the database that could not be kept; all others are rolled back.
            PartlyCommitted: an earlier one was kept already.
        """
        busy = self._busy_parts()
        if not (busy or self._has_more_to_settle()):
            return Settled()
        if self.before_commit is not None and self._doomed is None and self.hooks.failed_block is None:
            await self._ask_before_commit(keeps, spare or _none)
            busy = self._busy_parts()
        settling = self._settling(keeps, spare or _none)
        settling.hold_now(busy)  # those in use are waited for behind the shield
        return await self.host.shielded(self._settle(settling, busy, last), settling.cancel)

    async def finish(self, keeps: Keeps) -> Settled:
        """The last settling, and the end of every session."""
        if self.end_idle():
            return Settled()
        try:
            return await self.settle(keeps, last=True)
        finally:
            await self.close()

    def end_idle(self) -> bool:
        """End every session if there is nothing to settle and nothing to tell; whether there was nothing."""
        if self.hooks or self._doomed is not None or self.hooks.failed_block is not None or self.busy():
            return False
        self._end()
        self._forget()
        return True

    async def close(self) -> None:
        """End every session, and roll back what is open."""
        self._end()
        try:
            await self.settle(_never)
        finally:
            self._forget()

    def _forget(self) -> None:
        for handle in self._handles.values():
            handle.forget()

    def _end(self) -> None:
        self._ended = True
        for handle in self._handles.values():
            handle.end(self.name)

    def renew(self) -> None:
        """The next message of a WebSocket begins: a new unit of work over the same sessions."""
        self._doomed = None
        self._app_ended.clear()

    def new_block(self, *, joined: bool = False, database: Database | None = None) -> Block:
        """A block inside this unit begins, in the context that calls this."""
        outer = INNERMOST.get()
        block = Block(self.hooks.mark(), joined, database)
        block.outer = outer if outer in self.blocks else None
        self.blocks.append(block)
        INNERMOST.set(block)
        return block

    def end_block(self, block: Block) -> None:
        """It ends, in the context that calls this; `leave_block` does the rest."""
        self.blocks.remove(block)
        INNERMOST.set(block.outer)

    async def enter_block(self, block: Block, leaf: Leaf[Any] | None = None) -> None:
        """Set a savepoint on every database in use, or on the block's."""
        parts = self._concerned(block)
        try:
            if leaf is not None:
                await block.begin(parts, leaf)
            else:
                await self.host.shielded(block.begin(parts, self.host.leaf))
        except BaseException as error:
            begun = [part for part in parts if part[0] in block.savepoints]
            self.end_block(block)
            if begun and leaf is None:  # a cancellation: it never was inside
                await self.host.shielded(self._undo(block, begun, error, self.host.leaf))
            raise

    async def leave_block(self, block: Block, error: BaseException | None, leaf: Leaf[Any] | None = None) -> None:
        """What becomes of a block that has ended: keep its work as part of the unit, or, with an error, undo it.

        One that is cancelled before its savepoints are released is undone; later, nothing of the unit can be kept.

        Raises:
            CommitFailed: no error, but one that was swallowed inside has left a block that is a part of this one.
        """
        leaf = leaf or self.host.leaf
        if self._ended:  # a block around the response outlives it: all was settled before
            return
        if block.joined:
            if error is not None:
                self._fail_what_is_around(block, error)
            return
        parts = self._concerned(block)
        if error is None:
            try:
                await block.keep(parts, leaf)
            except BaseException as failure:
                await self._undo(block, parts, failure, leaf)
                raise
            if block.cancelled:
                self.cancel_block(block)
        else:
            await self._undo(block, parts, error, leaf)

    def cancel_block(self, block: Block) -> None:
        """Whoever waits for the end of this block was cancelled: what is kept of it already cannot be undone alone."""
        block.cancelled = True
        if block.kept:
            self.hooks.failed_block = "a block was cancelled while it ended"

    # How.

    def _part(self, database: Database) -> HasSession[Any]:
        """The handle of this database, opened now if it is not; in the colour of the code that asks."""
        handle = self._handles.get(database)
        bridge = self.host.bridge
        if bridge is not None and not database.blocking and bridge.plain():
            return self._part_across(database, handle, bridge)
        if handle is None:
            if must_prepare(database):
                raise UsageError(
                    f"database {database.key!r} has a before_create_session_handler, which has to be awaited: ask for "
                    "the session with `await db_session(...)` first."
                )
            handle = self._open(database)
        return handle

    def _part_across(self, database: Database, handle: Handle | None, bridge: Bridge) -> HasSession[Any]:
        if handle is None:
            bridge.portal.start()
            if must_prepare(database) or bridge.on_another_loop():  # which would get an engine of its own
                bridge.run(self.prepared(database), f"the first session of {database.key!r}")
                handle = self._handles[database]
            else:
                handle = bridge.call(lambda: self._open(database))
        if not isinstance(handle, Bridged):
            raise UsageError(f"database {database.key!r} is async, and has no session for plain code.")
        return handle.for_plain_code(bridge)

    def _open(self, database: Database) -> Handle:
        if self._ended:
            raise OutsideScope(
                f"the unit of work of {self.name} is over. Work that outlives it needs a unit of its own: "
                "use `async with unit_of_work():` (or `with`) where the work is done."
            )
        if self.host.blocking and not database.blocking:
            raise UsageError(
                f"database {database.key!r} is async, and this unit of work ({self.name}) is a blocking one: "
                "use `async with unit_of_work():` in a coroutine, or a sync database."
            )
        handle = self._handles.setdefault(database, database.open(self.hooks, self.reads_only))
        bridge = self.host.bridge
        if bridge is not None and not database.blocking and isinstance(handle, Bridged):
            handle.for_plain_code(bridge)  # what an `async def` function has read may go on to plain code
        return handle

    def _concerned(self, block: Block) -> list[Part]:
        return [part for part in self._handles.items() if block.database in (None, part[0])]

    def _fail_what_is_around(self, joined: Block, error: BaseException) -> None:
        """The block that it is a part of cannot be kept; nor, if that one concerns not all that is open, the next."""
        reason = f"an error left a block that is a part of it ({type(error).__name__}: {error})"
        block = joined.outer
        while block is not None:
            if not block.joined:
                block.failed = block.failed or reason
                if all(block.database in (None, part[0]) for part in self._busy_parts()):
                    return
            block = block.outer
        self.hooks.failed_block = reason

    def _refuse_inside_block(self, database: Database, what: str) -> None:
        if self.in_block(database):
            raise inside_a_block(f"{what} on database {database.key!r}")

    async def _end_now(self, database: Database, commit: bool) -> None:
        if not self.has_open(database):
            return
        self._refuse_inside_block(database, "commit" if commit else "rollback")
        kept = commit and self._doomed is None
        await self.settle(lambda one: kept, lambda one, _: one is not database)
        self._app_ended[database] = kept
        if commit and self._doomed is not None:
            raise CommitFailed(database.key, self._doomed, "")

    async def _let_go(self, database: Database, handle: Handle) -> None:
        if not handle.hold_now():
            await self.host.leaf(database.blocking, handle.hold())
        try:
            handle.forget()
            if handle.in_transaction():
                await self.host.leaf(database.blocking, handle.rollback())
        finally:
            handle.release()

    async def _ask_before_commit(self, keeps: Keeps, spare: Spare) -> None:
        """What it raises rolls back what was to be settled."""
        ask, self.before_commit = self.before_commit, None
        asking = ASKING.set(True)
        try:
            sessions = [part[1].session for part in self._busy_parts() if keeps(part[0]) and not spare(*part)]
            for session in sessions:
                result = ask(session) if ask is not None else None
                if inspect.isawaitable(result):
                    await result
        except BaseException as error:
            try:
                await self.settle(_never)
            except Exception as failure:
                error.add_note(f"transept: while rolling back {self.name}: {failure!r}")
            raise
        finally:
            ASKING.reset(asking)
            self.before_commit = ask

    def _register(self, committed: bool, hook: Hook) -> Hook:
        if self._ended:
            raise OutsideScope(f"the unit of work of {self.name} is over: nothing will run this hook.")
        if not callable(hook):
            raise UsageError(f"a hook must be callable, and {hook!r} is not: pass the function, not its result.")
        if self.host.blocking and is_async(hook):
            raise UsageError(f"{hook!r} is async, and this unit of work ({self.name}) is a blocking one.")
        self.hooks.add(committed, hook)
        return hook

    def _busy_parts(self) -> list[Part]:
        parts = [part for part in self._handles.items() if part[1].in_transaction()]
        registry = self._registry
        if len(parts) > 1 and registry:
            # Frameworks that inject may ask for them in any order.
            parts.sort(key=lambda part: registry.place(part[0]))
        return parts

    def _settling(self, keeps: Keeps, spare: Spare) -> Settling:
        return Settling(
            self.host,
            self.name,
            self.hooks,
            lambda database: self._doomed is None and keeps(database),
            spare,
            lambda dropped: self._vote(dropped, keeps),
        )

    async def _settle(self, settling: Settling, busy: list[Part], last: bool) -> Settled:
        try:
            settled, spared = await settling.run(busy)
            if last and not self.hooks:
                self._end()
        except BaseException:
            settling.release()
            self._forget_failed_block()
            await self._run_hooks(False)
            raise
        settling.release()
        self._forget_failed_block()
        if self.hooks and not spared:
            kept = settling.vote([]) if settled.kept is None else settled.kept
            if await self._run_hooks(kept):
                await self._settle_work_of_hooks(settling)
        return settled

    def _forget_failed_block(self) -> None:
        if self.hooks.failed_block is not None and not self.busy():
            self.hooks.failed_block = None

    def _vote(self, dropped: list[Part], keeps: Keeps) -> bool:
        """Whether the unit as a whole is kept, for the hooks."""
        if self._doomed is not None:
            return False
        votes = []
        for database, handle in self._handles.items():
            if not database.policy.manual or keeps(database):
                votes.append(keeps(database))
            elif any(handle is one for _, one in dropped) and handle.wrote():
                votes.append(False)
            elif (ended := self._app_ended.get(database, handle.app_ended())) is not None:
                votes.append(ended)
        return all(votes) if votes else keeps(None)

    async def _undo(self, block: Block, parts: list[Part], error: BaseException, leaf: Leaf[Any]) -> None:
        could_not = await block.undo(parts, self.hooks, error, leaf)
        if could_not is not None:
            self.hooks.failed_block = could_not

    async def _run_hooks(self, committed: bool) -> bool:
        ran = False
        while hooks := self.hooks.take(committed):
            for hook in hooks:
                ran = True
                try:
                    await self.host.call(hook)
                except Exception:
                    logger.exception("%s: a hook failed; what was settled stays: %r", self.name, hook)
        return ran

    async def _settle_work_of_hooks(self, settling: Settling) -> None:
        """A hook may have used the unit's sessions; a failure there no longer is the response's."""
        try:
            await settling.end(self._busy_parts())
        except Exception:
            logger.exception("%s: what a hook wrote could not be kept", self.name)


def _never(database: Database | None) -> bool:
    return False


def _none(database: Database, handle: Handle) -> bool:
    return False
