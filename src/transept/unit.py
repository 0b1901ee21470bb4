"""The unit of work: the sessions that one request, task or message opened, settled together.

    open -> (doomed) -> settled, as often as there is something to settle -> ended

Rule 1: what can fail early is made to: all that are to be kept are checked before the first one commits.
Rule 2: a failure before the first commit rolls all back; after it, it is `PartlyCommitted`.
Rule 3: hooks run when all have committed, in the order registered, before anybody is told.
Rule 4: every session is ended, whatever fails on the way; an error of cleaning up becomes a note on the first error.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from transept._bridge import is_async
from transept.database import Database, Handle, Registry, Savepoints
from transept.errors import CommitInDoubt, OutsideScope, PartlyCommitted, UsageError

__all__ = ["Block", "Hooks", "Host", "Settled", "Unit"]

T = TypeVar("T")
Hook = Callable[[], Any]
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
    """The callables to run when the unit has committed, or has rolled back, in the order registered."""

    __slots__ = ("_entries",)

    def __init__(self) -> None:
        self._entries: list[tuple[bool, Hook]] = []

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
    """A block inside an open unit: where it began, so that it can be undone alone."""

    mark: int
    savepoints: dict[Database, Any]


class Unit:
    """A unit of work. Get one from `unit_of_work()` or `current_unit()`; its methods do no I/O unless awaited."""

    __slots__ = ("_doomed", "_ended", "_handles", "_host", "_registry", "hooks", "name", "reads_only")

    def __init__(self, host: Host, name: str, registry: Registry | None = None, *, reads_only: bool = False) -> None:
        self._host = host
        self._registry = registry
        self._handles: dict[Database, Handle] = {}
        self._doomed: str | None = None
        self._ended = False
        self.hooks = Hooks()
        self.name = name
        self.reads_only = reads_only

    # What the app calls.

    def session(self, database: Database | str | None = None) -> Any:
        """The unit's session of this database, the same object each time; it lives as long as the unit.

        Takes the database, its key, or nothing where there is one (or a default). Takes no connection: the first
        statement does.

        Raises:
            OutsideScope: the unit is over.
            UsageError: an async database in a blocking unit.
        """
        if database is None or isinstance(database, str):
            if self._registry is None:
                raise UsageError("this unit of work knows no database by name: pass the database itself.")
            database = self._registry.get(database)
        handle = self._handles.get(database)
        if handle is None:
            handle = self._open(database)
        return handle.session

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
        busy = self._busy_parts()
        # The free sessions at once, before anybody else runs; those in use are waited for behind the shield.
        settling = Settling(keeps, spare, last, busy, [part for part in busy if part[1].hold_now()])
        return await self._host.shielded(self._settle(settling), settling.cancel)

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

    async def enter_block(self, leaf: Leaf[Any] | None = None) -> Block:
        """Begin a block inside this unit: a savepoint on every database in use."""
        leaf = leaf or self._host.leaf
        block = Block(self.hooks.mark(), {})
        for database, handle in self._handles.items():
            if handle.in_transaction() and isinstance(handle, Savepoints):
                block.savepoints[database] = await leaf(database.blocking, handle.savepoint())
        return block

    async def leave_block(self, block: Block, error: BaseException | None, leaf: Leaf[Any] | None = None) -> None:
        """End a block: keep its work as part of the unit, or, with an error, undo it."""
        leaf = leaf or self._host.leaf
        if error is not None:
            await self._undo(block, error, leaf)
            return
        try:
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
        if self._host.blocking and not database.blocking:
            raise UsageError(
                f"database {database.key!r} is async, and this unit of work ({self.name}) is a blocking one: "
                "use `async with unit_of_work():` in a coroutine, or a sync database."
            )
        return self._handles.setdefault(database, database.open(self.hooks, self.reads_only))

    def _register(self, committed: bool, hook: Hook) -> Hook:
        if self._ended:
            raise OutsideScope(f"the unit of work of {self.name} is over: nothing will run this hook.")
        if not callable(hook):
            raise UsageError(f"a hook must be callable, and {hook!r} is not: pass the function, not its result.")
        if self._host.blocking and is_async(hook):
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
            await self._run_hooks(False)
            raise
        settling.release()
        if not spared and await self._run_hooks(settled.kept):
            await self._settle_work_of_hooks(settling)
        return settled

    async def _settle_held(self, settling: Settling) -> tuple[Settled, bool]:
        """What was settled, and whether anything was spared."""
        held = settling.held
        for part in settling.busy:
            if part not in held:
                await self._host.leaf(part[0].blocking, part[1].hold())
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
        if parts and not self._host.blocking and all(database.blocking for database, _ in parts):
            return await self._host.leaf(True, self._commit_or_roll_back(parts, settling, _direct))
        return await self._commit_or_roll_back(parts, settling, self._host.leaf)

    async def _commit_or_roll_back(self, parts: list[Part], settling: Settling, leaf: Leaf[Any]) -> Settled:
        keep = [part for part in parts if self._doomed is None and settling.keep(part[0])]
        drop = [part for part in parts if part not in keep]
        forgotten = [db.key for db, handle in drop if db.policy.manual and handle.wrote()]
        settled = Settled(forgotten, self._vote(drop, settling.keeps))
        committed: list[str] = []
        database: Database | None = None
        try:
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
            elif (ended := handle.app_ended()) is not None:
                votes.append(ended)
        return all(votes) if votes else keeps(None)

    async def _undo(self, block: Block, error: BaseException, leaf: Leaf[Any]) -> None:
        self.hooks.drop_since(block.mark)
        for database, handle in self._handles.items():
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
                    await self._host.call(hook)
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
