"""Who has taken the connections of a driver's own pool, and since when."""

from __future__ import annotations

from time import monotonic

__all__ = ["Holders"]


class Holders:
    """The connections of one pool that are out."""

    __slots__ = ("_out",)

    def __init__(self) -> None:
        self._out: dict[int, tuple[str, float]] = {}

    def took(self, connection: object, holder: str) -> None:
        self._out[id(connection)] = (holder, monotonic())

    def gave_back(self, connection: object) -> None:
        self._out.pop(id(connection), None)

    def since(self) -> list[tuple[str, float]]:
        """Each with the seconds since when, the longest first."""
        now = monotonic()
        return sorted(((who, now - taken) for who, taken in list(self._out.values())), key=lambda one: -one[1])

    def __len__(self) -> int:
        return len(self._out)
