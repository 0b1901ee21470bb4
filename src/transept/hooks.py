"""What a unit of work shares with its databases: the callables that wait for its outcome, and its open blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["Hook", "Hooks"]

Hook = Callable[[], Any]


class Hooks:
    """The callables to run when the unit has committed, or has rolled back, in the order registered.

    `blocks`: the blocks of the unit that are open, those of its sessions among them; while there is one, nothing is
    settled in between. `failed_block` says why no COMMIT may follow: an error left a block that was a part of the unit.
    """

    __slots__ = ("_entries", "blocks", "failed_block")

    def __init__(self) -> None:
        self._entries: list[tuple[bool, Hook]] = []
        self.blocks: list[Any] = []
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
