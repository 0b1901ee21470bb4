"""A block inside a unit of work: what it can undo alone, and why it cannot be kept."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from transept.database import Database, Savepoints
from transept.errors import IN_BLOCK, CommitFailed
from transept.hooks import Hooks
from transept.settling import Leaf, Part

__all__ = ["INNERMOST", "Block"]


@dataclass(slots=True, eq=False)
class Block:
    """Where a block began. One that is `joined` is a part of what is around it, and undoes nothing itself.

    `database`: the only one that it concerns; None means all. `outer`: the block of the same unit that it stands in,
    as far as is known. `failed`: why it cannot be kept. `cancelled`: while its end was waited for. `kept`: it is a part
    of what is around it.
    """

    mark: int = 0
    joined: bool = False
    database: Database | None = None
    savepoints: dict[Database, Any] = field(default_factory=dict)
    outer: Block | None = None
    failed: str | None = None
    cancelled: bool = False
    kept: bool = False

    async def begin(self, parts: list[Part], leaf: Leaf[Any]) -> None:
        """Set a savepoint on every database in use."""
        for database, handle in parts:
            if handle.in_transaction() and isinstance(handle, Savepoints):
                self.savepoints[database] = await leaf(database.blocking, handle.savepoint())

    async def keep(self, parts: list[Part], leaf: Leaf[Any]) -> None:
        """Make what was done a part of the unit.

        Raises:
            CommitFailed: an error that was swallowed inside has left a block that is a part of this one, or it was
                cancelled.
        """
        if self.failed is not None:
            raise CommitFailed(", ".join(database.key for database, _ in parts), self.failed, IN_BLOCK)
        if self.cancelled:
            raise CommitFailed(", ".join(database.key for database, _ in parts), "the block was cancelled", "")
        for database, handle in parts:
            if database in self.savepoints and isinstance(handle, Savepoints):
                await leaf(database.blocking, handle.release_savepoint(self.savepoints[database]))
        self.kept = True

    async def undo(self, parts: list[Part], hooks: Hooks, error: BaseException, leaf: Leaf[Any]) -> str | None:
        """Undo what was done since it began; why it could not be, if so."""
        hooks.drop_since(self.mark)
        doom = None
        for database, handle in parts:
            try:
                if database in self.savepoints and isinstance(handle, Savepoints):
                    await leaf(database.blocking, handle.rollback_to(self.savepoints[database]))
                elif handle.in_transaction():
                    await leaf(database.blocking, handle.rollback())
            except Exception as failure:
                doom = f"a block could not be undone on database {database.key!r}"
                error.add_note(f"transept: while undoing the block on database {database.key!r}: {failure!r}")
        return doom


INNERMOST: ContextVar[Block | None] = ContextVar("transept_innermost_block", default=None)
"""The block that this code stands in; of which unit, and whether it is still open, the unit knows."""
