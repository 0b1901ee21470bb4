"""The one connection of a sandbox to one database, and the transaction that is open on it as long as a test runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

from transept.errors import OutsideScope
from transept.testing.errors import SandboxLost
from transept.testing.home import Home
from transept.testing.outer import Outer
from transept.testing.turnstile import Turnstile, User

__all__ = ["Joined", "Shared", "Source"]

T = TypeVar("T")


class Joined(Protocol):
    """What a unit has of it."""

    def abandon(self) -> None:
        """The sandbox is over: refuse from now on."""
        ...


class Source:
    """What `database.use` takes; it outlives a sandbox, with its connections."""

    def __init__(self, database: str) -> None:
        self.database = database
        self.patience: float | None = None

    def connections(self) -> Sequence[Shared]:
        """Those that were made so far."""
        raise NotImplementedError

    def begin(self, patience: float) -> None:
        """A sandbox begins; units wait that many seconds for each other."""
        self.patience = patience
        for shared in self.connections():
            shared.begin(patience)

    def end(self, patience: float) -> tuple[list[str], list[Exception]]:
        """The sandbox is over. Blocks. Who had not ended after that many seconds, and what could not be undone."""
        self.patience = None
        leaks, failures = [], []
        for shared in self.connections():
            try:
                leak = shared.end(patience)
            except Exception as error:
                failures.append(error)
            else:
                leaks += [leak] if leak else []
        return leaks, failures

    def close(self) -> list[Future[None]]:
        """Close the connections, soon."""
        return [shared.close() for shared in self.connections()]


class Shared:
    """A connection that lives at `home`, or right here if it blocks."""

    def __init__(self, database: str, home: Home | None) -> None:
        self.database = database
        self.home = home
        self.outer: Outer | None = None
        self.turnstile: Turnstile | None = None
        self._one_by_one = asyncio.Lock()
        self._joined: tuple[User, Joined] | None = None

    def begin(self, patience: float) -> None:
        """A sandbox begins. No I/O: the transaction begins with the first unit that needs it."""
        self.turnstile = Turnstile(self.database, patience)

    def end(self, patience: float) -> str | None:
        """The sandbox is over: undo everything. Blocks. Who had not ended by then.

        Raises:
            SandboxLost: not everything could be undone.
        """
        user = None if self.turnstile is None else self.turnstile.close(patience)
        self.turnstile = None
        if self._joined is not None:
            self._joined[1].abandon()
            self._joined = None
        if self.home is not None:
            self.wait_for(nothing)  # what was begun for one that was cancelled ends before this
        outer, self.outer = self.outer, None
        try:
            if outer is not None:
                self.wait_for(self.roll_back)
        except Exception as error:
            self.close().exception()
            raise SandboxLost(self.database, f"it could not be rolled back ({error!r})") from error
        if outer is not None and outer.lost is not None:
            self.close().exception()
            raise SandboxLost(self.database, outer.lost)
        return None if user is None else f"{user} still has a transaction open on database {self.database!r}"

    def close(self) -> Future[None]:
        """Close the connection, soon; the next sandbox makes a new one."""
        return self.start(self.disconnect)

    # For those that join.

    def joined(self, user: User, joined: Joined) -> None:
        self._joined = (user, joined)

    def part_of(self) -> Outer:
        """The transaction around the test."""
        if self.outer is None:
            raise self.over()
        return self.outer

    def give_back(self, user: User) -> None:
        if self._joined is not None and self._joined[0] is user:
            self._joined = None
        if self.turnstile is not None:
            self.turnstile.give_back(user)

    def undo_and_give_back(self, undo: Callable[[], Coroutine[Any, Any, None]], user: User) -> None:
        """For one that was dropped, wherever and in whatever state: after what is under way for it has ended."""

        def ended(done: Future[None]) -> None:
            done.exception()  # if it failed, the outer transaction knows that it is lost
            self.give_back(user)

        self.start(undo).add_done_callback(ended)

    def over(self) -> OutsideScope:
        return OutsideScope(f"the sandbox of database {self.database!r}, in which this session was opened, is over.")

    # Where the connection lives.

    def start(self, work: Callable[[], Coroutine[Any, Any, T]]) -> Future[T]:
        """Begin I/O on the connection, after what is under way on it."""
        raise NotImplementedError

    def wait_for(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """I/O on the connection, waited for in this thread."""
        return self.start(work).result()

    async def one_by_one(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        async with self._one_by_one:
            return await work()

    async def roll_back(self) -> None:
        raise NotImplementedError

    async def disconnect(self) -> None:
        raise NotImplementedError


async def nothing() -> None:
    """To be last in a queue."""
