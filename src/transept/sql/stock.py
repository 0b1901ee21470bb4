"""Who gets which connection of a pool: the decisions, without the waiting.

Rule 1: there are never more than `max_size` slots in use. A connection has one from the moment somebody may connect
    until it is given up, or has been closed by the pool.
Rule 2: who comes gets the idle connection that was used last; if none is idle, a free slot to connect in; else waits.
Rule 3: a connection that is given back, or a slot that gets free, goes to who has waited longest, at once. So nobody
    waits while a connection is idle or a slot is free, and nobody who comes later is served before.
Rule 4: a connection that was idle for longer than `max_idle` seconds is closed instead of used.
Rule 5: closing ends what was asked for before it: the idle connections now, those in use when they come back, those of
    who still waits or connects when they are done. What is asked for later is served anew.

Nothing here does I/O, waits, or looks at a clock: the time is an argument, in seconds. A waiter is any hashable object.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

__all__ = ["Stock"]

C = TypeVar("C")
W = TypeVar("W", bound=Hashable)


class Stock(Generic[C, W]):
    """The connections of one pool, and who waits for one.

    After `expire`, `give_back` and `close`, whoever calls closes what `to_close` returns, and says so with `closed`. A
    waiter that a method returns may connect now: its slot is reserved until `connected` or `failed`. Only the waiter
    that `give_back` returns has that very connection.
    """

    __slots__ = (
        "_closing",
        "_connecting",
        "_generation",
        "_idle",
        "_out",
        "_waiting",
        "doomed",
        "max_idle",
        "max_size",
    )

    def __init__(self, max_size: int, max_idle: float | None = None) -> None:
        self.max_size = max_size
        self.max_idle = max_idle
        self.doomed: list[C] = []
        self._closing = 0
        self._generation = 0  # of what is asked for now: one more with each `close`
        self._idle: list[tuple[C, float]] = []  # with the time since when; who was used last is last
        # By identity, as connections may be equal or not hashable: connection, holder, since, generation.
        self._out: dict[int, tuple[C, str, float, int]] = {}
        self._connecting: dict[W, tuple[str, float, int]] = {}  # holder, since, generation
        self._waiting: OrderedDict[W, tuple[str, int]] = OrderedDict()  # holder, generation

    @property
    def size(self) -> int:
        """How many slots are in use."""
        return len(self._out) + len(self._idle) + len(self._connecting) + len(self.doomed) + self._closing

    @property
    def in_use(self) -> int:
        """How many connections somebody has."""
        return len(self._out)

    @property
    def idle(self) -> int:
        return len(self._idle)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def holders(self, now: float) -> list[tuple[str, float]]:
        """Who has a connection, or is connecting, each with the seconds since when; the longest first."""
        held = [(holder, now - since) for _, holder, since, _ in self._out.values()]
        held += [(holder, now - since) for holder, since, _ in self._connecting.values()]
        return sorted(held, key=lambda one: -one[1])

    def take(self, holder: str, now: float) -> C | None:
        """An idle connection; None if there is none: then `ask`."""
        if not self._idle:
            return None
        connection, _ = self._idle.pop()
        self._out[id(connection)] = (connection, holder, now, self._generation)
        return connection

    def ask(self, waiter: W, holder: str, *, now: float) -> bool:
        """Whether `waiter` may connect at once; else it waits, until a method returns it or it leaves."""
        if self.reserve(waiter, self.max_size, holder=holder, now=now):
            return True
        self._waiting[waiter] = (holder, self._generation)
        return False

    def reserve(self, waiter: W, size: int, *, holder: str, now: float) -> bool:
        """Whether fewer than `size` slots, and than `max_size`, are in use: `waiter` may connect. It does not wait."""
        if self.size >= min(size, self.max_size):
            return False
        self._connecting[waiter] = (holder, now, self._generation)
        return True

    def leave(self, waiter: W) -> None:
        """`waiter`, who is still waiting, gives it up."""
        del self._waiting[waiter]

    def connected(self, waiter: W, connection: C) -> None:
        """`waiter` has made the connection, and has it."""
        self._out[id(connection)] = (connection, *self._connecting.pop(waiter))

    def failed(self, waiter: W, now: float) -> W | None:
        """`waiter` could not connect, or did not want to any more; returns who may connect instead."""
        del self._connecting[waiter]
        return self._next(now)

    def give_back(self, connection: C, now: float) -> W | None:
        """A clean connection comes back: returns the waiter who has it now; None if it is idle, or doomed.

        Raises:
            RuntimeError: nobody has this connection.
        """
        generation = self._returned(connection)
        if generation != self._generation:
            self.doomed.append(connection)
            return None
        if not self._waiting:
            self._idle.append((connection, now))
            return None
        waiter, (holder, _) = self._waiting.popitem(last=False)
        self._out[id(connection)] = (connection, holder, now, generation)
        return waiter

    def drop(self, connection: C, now: float) -> W | None:
        """A connection is given up by who has it; returns who may connect instead.

        Raises:
            RuntimeError: nobody has this connection.
        """
        self._returned(connection)
        return self._next(now)

    def expire(self, now: float) -> None:
        """Dooms the connections that were idle for too long."""
        if self.max_idle is None:
            return
        while self._idle and now - self._idle[0][1] > self.max_idle:
            self.doomed.append(self._idle.pop(0)[0])

    def close(self) -> None:
        """Dooms the idle connections now and all others later (rule 5)."""
        self._generation += 1
        self.doomed += [connection for connection, _ in self._idle]
        self._idle.clear()

    def to_close(self) -> C | None:
        """One of the doomed connections, None if there is none left. It has its slot until `closed`."""
        if not self.doomed:
            return None
        self._closing += 1
        return self.doomed.pop()

    def closed(self, now: float) -> W | None:
        """A connection from `to_close` is closed; returns who may connect instead."""
        self._closing -= 1
        return self._next(now)

    def _next(self, now: float) -> W | None:
        if not self._waiting:
            return None
        waiter, (holder, generation) = self._waiting.popitem(last=False)
        self._connecting[waiter] = (holder, now, generation)
        return waiter

    def _returned(self, connection: C) -> int:
        entry = self._out.pop(id(connection), None)
        if entry is None:
            raise RuntimeError(
                f"{connection!r} is not in use: it was given back or discarded before, or it is of another pool. Give "
                "each connection back once, to the pool it was taken from."
            )
        return entry[3]
