"""The unit of work: the sessions that one request, task or message opened, settled together.

    open -> (doomed) -> settled, as often as there is something to settle -> ended

Rule 1: what can fail early is made to: all that are to be kept are checked before the first one commits.
Rule 2: a failure before the first commit rolls all back; after it, it is `PartlyCommitted`.
Rule 3: hooks run when all have committed, in the order registered, before anybody is told.
Rule 4: every session is ended, whatever fails on the way; an error of cleaning up becomes a note on the first error.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, overload

from transept._bridge import is_async
from transept.database import Adopts, Database, Gives, Handle, Prepares, Registry, Savepoints
from transept.errors import CommitFailed, CommitInDoubt, OutsideScope, PartlyCommitted, UsageError

__all__ = ["BeforeCommit", "Block", "Hooks", "Host", "Settled", "Unit"]

S = TypeVar("S")
T = TypeVar("T")
Hook = Callable[[], Any]
BeforeCommit = Callable[[Any], Any]
Keeps = Callable[[Database | None], bool]
Spare = Callable[[Database, Handle], bool]
Leaf = Callable[[bool, Coroutine[Any, Any, T]], Awaitable[T]]
Part = tuple[Database, Handle]

logger = logging.getLogger("transept")


class Host(Protocol):
    """What a unit needs from where it runs: the core imports no event loop and no threads."""

    @property
    def blocking(self) -> bool: ...

    async def leaf(self, blocking: bool, work: Coroutine[Any, Any, T]) -> T:
        """Run I/O of a database of this colour where it may run."""
        ...

    async def shielded(self, work: Coroutine[Any, Any, T], cancelled: Callable[[], None] | None = None) -> T:
        """Run this to its end, also when the caller is cancelled: call `cancelled()`, and raise it afterwards."""
        ...

    async def call(self, hook: Hook) -> None:
        """Call a hook of either colour."""
        ...


class Hooks:
    """The callables to run when the unit has committed, or has rolled back, in the order registered.

    `failed_block` says why no COMMIT may follow: an error left a block that was a part of the unit.
    """

    __slots__ = ("_entries", "failed_block")

    def __init__(self) -> None:
        self._entries: list[tuple[bool, Hook]] = []
        self.failed_block: str | None = None

    def add(self, committed: bool, hook: Hook) -> None:
        self._entries.append((committed, hook))

    def mark(self) -> int:
        """Where a savepoint begins, for `drop_since`."""
        return len(self._entries)

    def drop_since(self, mark: int) -> None:
        """The savepoint was rolled back: forget what was registered in it."""
        del self._entries[mark:]

    def take(self, committed: bool) -> list[Hook]:
        """The hooks of this outcome; all are forgotten."""
        entries, self._entries = self._entries, []
        return [hook for outcome, hook in entries if outcome is committed]

    def __bool__(self) -> bool:
        return bool(self._entries)


def _none(database: Database, handle: Handle) -> bool:
    return False


@dataclass(slots=True)
class Settled:
    """What one settling did. `forgotten`: keys of manual databases whose uncommitted work was rolled back."""

    forgotten: list[str] = field(default_factory=list)
    kept: bool = True


@dataclass(slots=True)
class Settling:
    """One settling under way: what it was asked to do, whose turns it holds, whether its caller was cancelled."""

    keeps: Keeps
    spare: Spare
    last: bool
    busy: list[Part]
    held: list[Part]
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True

    def keep(self, database: Database) -> bool:
        return not self.cancelled and self.keeps(database)

    def release(self) -> None:
        while self.held:
            self.held.pop()[1].release()


@dataclass(slots=True)
class Block:
    """A block inside a unit: where it began, so that it can be undone alone, unless it is `joined` to what is around.

    `database`: the only one that it concerns; None means all. `failed`: why it cannot be kept.
    """

    mark: int = 0
    joined: bool = False
    database: Database | None = None
    savepoints: dict[Database, Any] = field(default_factory=dict)
    failed: str | None = None


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

    def __init__(self, host: Host, name: str, registry: Registry | None = None, *, reads_only: bool = False) -> None:
        self.host = host
        self._registry = registry
        self._handles: dict[Database, Handle] = {}
        self._app_ended: dict[Database, bool] = {}
        self._doomed: str | None = None
        self._ended = False
        self.before_commit: BeforeCommit | None = None
        self.blocks: list[Block] = []
        self.hooks = Hooks()
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
        handle = self._handles.get(found)
        if handle is None:
            if isinstance(found, Prepares) and found.prepares:
                raise UsageError(
                    f"database {found.key!r} has a before_create_session_handler, which has to be awaited: ask for "
                    "the session with `await db_session(...)` first."
                )
            handle = self._open(found)
        return handle.session

    @overload
    async def prepared(self, database: Gives[S]) -> S: ...
    @overload
    async def prepared(self, database: str | None = None) -> Any: ...
    async def prepared(self, database: Any = None) -> Any:
        """As `session`, after what the database has to await before. Callers that race get the same session."""
        found = self.database(database)
        handle = self._handles.get(found)
        if handle is None:
            if isinstance(found, Prepares) and found.prepares:
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
        handle = self._handles.get(database)
        return None if handle is None else handle.session

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
            if handle.wrote():
                await self.rollback(database)
            self._refuse_inside_block(database, "close_db_session")
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
        return any(handle.in_transaction() for handle in self._handles.values())

    def handles(self) -> list[Part]:
        return list(self._handles.items())

    async def settle(self, keeps: Keeps, spare: Spare = _none, *, last: bool = False) -> Settled:
        """End the open transactions, each as `keeps(database)` says, then run the hooks.

        ``keeps(None)`` decides for a unit that used no database. Those that `spare` names stay as they are, and then
        the hooks wait. With `last`, no statement comes in between this and the end of the unit. A cancellation
        meanwhile is raised when all is done.

        Raises:
            Exception: the error of the database that could not be kept; all others are rolled back.
            PartlyCommitted: an earlier one was kept already.
        """
        if not (self.busy() or self.hooks):
            return Settled()
        if self.before_commit is not None and self._doomed is None:
            await self._ask_before_commit(keeps, spare)
        busy = self._busy_parts()
        # The free sessions at once, before anybody else runs; those in use are waited for behind the shield.
        settling = Settling(keeps, spare, last, busy, [part for part in busy if part[1].hold_now()])
        return await self.host.shielded(self._settle(settling), settling.cancel)

    async def finish(self, keeps: Keeps) -> Settled:
        """The last settling, and the end of every session."""
        try:
            return await self.settle(keeps, last=True)
        finally:
            await self.close()

    async def close(self) -> None:
        """End every session, and roll back what is open."""
        self._end()
        try:
            await self.settle(_never)
        finally:
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
        """A block inside this unit begins."""
        block = Block(self.hooks.mark(), joined, database)
        self.blocks.append(block)
        return block

    async def enter_block(self, block: Block, leaf: Leaf[Any] | None = None) -> None:
        """Set a savepoint on every database in use, or on the block's."""
        leaf = leaf or self.host.leaf
        try:
            for database, handle in self._concerned(block):
                if handle.in_transaction() and isinstance(handle, Savepoints):
                    block.savepoints[database] = await leaf(database.blocking, handle.savepoint())
        except BaseException:
            self.blocks.remove(block)
            raise

    async def leave_block(self, block: Block, error: BaseException | None, leaf: Leaf[Any] | None = None) -> None:
        """End a block: keep its work as part of the unit, or, with an error, undo it.

        Raises:
            CommitFailed: no error, but one that was swallowed inside has left a block that is a part of this one.
        """
        leaf = leaf or self.host.leaf
        self.blocks.remove(block)
        if block.joined:
            if error is not None:
                self._fail_what_is_around(error)
            return
        if error is not None:
            await self._undo(block, error, leaf)
            return
        try:
            if block.failed is not None:
                raise CommitFailed(", ".join(database.key for database, _ in self._concerned(block)), block.failed)
            for database, savepoint in block.savepoints.items():
                handle = self._handles[database]
                if isinstance(handle, Savepoints):
                    await leaf(database.blocking, handle.release_savepoint(savepoint))
        except BaseException as failure:
            await self._undo(block, failure, leaf)
            raise

    # How.

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
        return self._handles.setdefault(database, database.open(self.hooks, self.reads_only))

    def _concerned(self, block: Block) -> list[Part]:
        return [part for part in self._handles.items() if block.database in (None, part[0])]

    def _fail_what_is_around(self, error: BaseException) -> None:
        reason = f"an error left a block that is a part of it ({type(error).__name__}: {error})"
        for block in reversed(self.blocks):
            if not block.joined and block.database is None:
                block.failed = reason
                return
        self.hooks.failed_block = reason

    def _refuse_inside_block(self, database: Database, what: str) -> None:
        if self.in_block(database):
            raise UsageError(
                f"{what} on database {database.key!r} inside a block, whose end decides what is kept: do it outside "
                "of the block."
            )

    async def _end_now(self, database: Database, commit: bool) -> None:
        if not self.has_open(database):
            return
        self._refuse_inside_block(database, "commit" if commit else "rollback")
        if commit and self._doomed is not None:
            raise CommitFailed(database.key, self._doomed)
        await self.settle(lambda one: commit, lambda one, _: one is not database)
        self._app_ended[database] = commit

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
        assert self.before_commit is not None
        for part in self._busy_parts():
            if keeps(part[0]) and not spare(*part):
                result = self.before_commit(part[1].session)
                if inspect.isawaitable(result):
                    await result

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
        return [part for part in self._handles.items() if part[1].in_transaction()]

    async def _settle(self, settling: Settling) -> Settled:
        try:
            settled, spared = await self._settle_held(settling)
            if settling.last and not self.hooks:
                self._end()
        except BaseException:
            settling.release()
            self._forget_failed_block()
            await self._run_hooks(False)
            raise
        settling.release()
        self._forget_failed_block()
        if not spared and await self._run_hooks(settled.kept):
            await self._settle_work_of_hooks(settling)
        return settled

    def _forget_failed_block(self) -> None:
        if not self.busy():
            self.hooks.failed_block = None

    async def _settle_held(self, settling: Settling) -> tuple[Settled, bool]:
        """What was settled, and whether anything was spared."""
        held = settling.held
        for part in settling.busy:
            if part not in held:
                await self.host.leaf(part[0].blocking, part[1].hold())
                held.append(part)
        parts = [part for part in held if part[1].in_transaction()]
        try:
            wanted = [part for part in parts if not settling.spare(*part)]
        except Exception:
            await self._end_transactions(parts, _NOTHING)
            raise
        return await self._end_transactions(wanted, settling), len(wanted) < len(parts)

    async def _end_transactions(self, parts: list[Part], settling: Settling) -> Settled:
        """The blocking ones all in one thread when there are no others."""
        if parts and not self.host.blocking and all(database.blocking for database, _ in parts):
            return await self.host.leaf(True, self._commit_or_roll_back(parts, settling, _direct))
        return await self._commit_or_roll_back(parts, settling, self.host.leaf)

    async def _commit_or_roll_back(self, parts: list[Part], settling: Settling, leaf: Leaf[Any]) -> Settled:
        keep = [part for part in parts if self._doomed is None and settling.keep(part[0])]
        drop = [part for part in parts if part not in keep]
        forgotten = [db.key for db, handle in drop if db.policy.manual and handle.wrote()]
        settled = Settled(forgotten, self._vote(drop, settling.keeps))
        committed: list[str] = []
        database: Database | None = None
        try:
            if keep and self.hooks.failed_block is not None:
                raise CommitFailed(keep[0][0].key, self.hooks.failed_block)
            for database, handle in keep:
                await leaf(database.blocking, handle.check())
            if settling.cancelled:  # before a COMMIT was sent
                keep, drop = [], parts
            for part in drop:
                await _roll_back(part, None, leaf)
            for database, handle in keep:
                await leaf(database.blocking, handle.commit())
                committed.append(database.key)
        except BaseException as error:
            rest = [part for part in parts if part[1].in_transaction()]
            for part in rest:
                await _roll_back(part, error, leaf)
            failed = database.key if database is not None else ""
            if committed:
                others = [db.key for db, _ in rest if db.key != failed]
                raise PartlyCommitted(committed, failed, others) from error
            if database is not None and not isinstance(error, CommitInDoubt):
                error.add_note(f"transept: {self.name}: database {failed!r} did not commit; all was rolled back.")
            raise
        settled.kept = settled.kept and not (settling.cancelled and not committed)
        return settled

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

    async def _undo(self, block: Block, error: BaseException, leaf: Leaf[Any]) -> None:
        self.hooks.drop_since(block.mark)
        for database, handle in self._concerned(block):
            try:
                if database in block.savepoints and isinstance(handle, Savepoints):
                    await leaf(database.blocking, handle.rollback_to(block.savepoints[database]))
                elif handle.in_transaction():
                    await leaf(database.blocking, handle.rollback())
            except Exception as failure:
                self.doom(f"a block could not be undone on database {database.key!r}")
                error.add_note(f"transept: while undoing the block on database {database.key!r}: {failure!r}")

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
            await self._end_transactions(self._busy_parts(), settling)
        except Exception:
            logger.exception("%s: what a hook wrote could not be kept", self.name)


def _never(database: Database | None) -> bool:
    return False


_NOTHING = Settling(_never, _none, False, [], [])


async def _direct(blocking: bool, work: Coroutine[Any, Any, T]) -> T:
    return await work


async def _roll_back(part: Part, error: BaseException | None, leaf: Leaf[Any]) -> None:
    """Roll one database back; a connection that cannot be is dropped, and so is its transaction."""
    database, handle = part
    try:
        if isinstance(error, CommitInDoubt):
            await leaf(database.blocking, handle.invalidate())
        else:
            await leaf(database.blocking, handle.rollback())
    except Exception as failure:
        note = f"transept: rolling back database {database.key!r} failed ({failure!r}); its connection was dropped."
        try:
            await leaf(database.blocking, handle.invalidate())
        except Exception as second:
            note += f" Dropping it failed, too: {second!r}"
        if error is None:
            logger.warning(note)
        else:
            error.add_note(note)
