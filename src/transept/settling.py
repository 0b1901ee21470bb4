"""How the transactions of several databases end together.

Rule 1: what can fail early is made to: all that are to be kept are checked before the first one commits.
Rule 2: a failure before the first commit rolls all back; after it, it is `PartlyCommitted`.
Rule 3: a cancellation before the first commit rolls all back; a COMMIT once sent runs to its end.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from transept._portal import Bridge
from transept.database import Database, Handle
from transept.errors import IN_BLOCK, CommitFailed, CommitInDoubt, PartlyCommitted
from transept.hooks import Hook, Hooks

__all__ = ["Host", "Keeps", "Leaf", "Part", "Settled", "Settling", "Spare"]

T = TypeVar("T")
Keeps = Callable[[Database | None], bool]
Spare = Callable[[Database, Handle], bool]
Leaf = Callable[[bool, Coroutine[Any, Any, T]], Awaitable[T]]
Part = tuple[Database, Handle]

logger = logging.getLogger("transept")


class Host(Protocol):
    """What a unit needs from where it runs: the core imports no event loop and no threads."""

    @property
    def blocking(self) -> bool: ...

    @property
    def bridge(self) -> Bridge | None:
        """How plain code in the unit reaches its async databases; None where it cannot, or need not."""
        ...

    def leaf(self, blocking: bool, work: Coroutine[Any, Any, T]) -> Awaitable[T]:
        """Run I/O of a database of this colour where it may run."""
        ...

    async def shielded(self, work: Coroutine[Any, Any, T], cancelled: Callable[[], None] | None = None) -> T:
        """Run this to its end, also when the caller is cancelled: call `cancelled()`, and raise it afterwards."""
        ...

    async def call(self, hook: Hook) -> None:
        """Call a hook of either colour."""
        ...


@dataclass(slots=True)
class Settled:
    """What one settling did. `forgotten`: keys of manual databases whose uncommitted work was rolled back.

    `kept`: whether the unit as a whole was, for the hooks; None while nobody has asked for the vote.
    """

    forgotten: list[str] = field(default_factory=list)
    kept: bool | None = None


@dataclass(slots=True)
class Settling:
    """One settling under way: what it was asked to do, whose turns it holds, whether its caller was cancelled.

    `vote` says whether the unit as a whole is kept, given the parts that are rolled back.
    """

    host: Host
    name: str
    hooks: Hooks
    keeps: Keeps
    spare: Spare
    vote: Callable[[list[Part]], bool]
    cancelled: bool = False
    held: list[Part] = field(default_factory=list)

    def cancel(self) -> None:
        self.cancelled = True

    def hold_now(self, parts: list[Part]) -> None:
        """Take the turns of the free sessions, before anybody else runs."""
        self.held = [part for part in parts if part[1].hold_now()]

    def release(self) -> None:
        while self.held:
            self.held.pop()[1].release()

    async def run(self, busy: list[Part]) -> tuple[Settled, bool]:
        """End the transactions of those that are busy; what was settled, and whether anything was spared."""
        if len(self.held) < len(busy):
            for part in busy:
                if part not in self.held:
                    await self.host.leaf(part[0].blocking, part[1].hold())
                    self.held.append(part)
        parts = [part for part in self.held if part[1].in_transaction()]
        try:
            wanted = [part for part in parts if not self.spare(*part)]
        except Exception:
            await self.end(parts, keep=False)
            raise
        return await self.end(wanted), len(wanted) < len(parts)

    async def end(self, parts: list[Part], *, keep: bool = True) -> Settled:
        """The blocking ones all in one thread when there are no others."""
        kept = [part for part in parts if self.keeps(part[0])] if keep and not self.cancelled else []
        if parts and parts[0][0].blocking and not self.host.blocking and all(one.blocking for one, _ in parts):
            return await self.host.leaf(True, self._commit_or_roll_back(parts, kept, _direct))
        return await self._commit_or_roll_back(parts, kept, self.host.leaf)

    async def _commit_or_roll_back(self, parts: list[Part], keep: list[Part], leaf: Leaf[Any]) -> Settled:
        drop = [part for part in parts if part not in keep] if len(keep) < len(parts) else []
        settled = Settled()
        if drop or self.hooks:
            settled.forgotten = [db.key for db, handle in drop if db.policy.manual and handle.wrote()]
            settled.kept = self.vote(drop)
        committed: list[str] = []
        database: Database | None = None
        try:
            if self.hooks.failed_block is not None and (keep or (not parts and self.keeps(None))):
                raise CommitFailed(", ".join(part[0].key for part in keep), self.hooks.failed_block, IN_BLOCK)
            for database, handle in keep:
                await leaf(database.blocking, handle.check())
            if self.cancelled:  # before a COMMIT was sent
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
            if database is not None and not isinstance(error, (CommitInDoubt, PartlyCommitted)):
                error.add_note(f"transept: {self.name}: database {failed!r} did not commit; all was rolled back.")
            raise
        if self.cancelled and not committed:
            settled.kept = False
        return settled


def _direct(blocking: bool, work: Coroutine[Any, Any, T]) -> Awaitable[T]:
    return work


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
