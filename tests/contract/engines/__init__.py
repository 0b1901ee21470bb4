"""One module for each engine: how a case looks at the database through a second connection, and makes it fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol


class Engine(Protocol):
    """What a case needs of a database server.

    `can` holds what the engine offers to cases: ``late`` (a COMMIT that fails), ``aborts`` (a transaction that an
    error aborts), ``kill`` (a session ended from outside), ``wire`` (a network in between), ``slow`` (statements),
    ``ends`` (an error that ends the transaction, and what follows is another), ``peek`` (looking while a transaction
    that wrote is open).
    """

    name: str
    can: frozenset[str]

    def reset(self) -> None:
        """Empty tables."""

    def close(self) -> None:
        """Let go of what this engine holds open."""

    def url(self, driver: str, port: int | None = None) -> str:
        """A SQLAlchemy URL, through a proxy on `port` if there is one."""

    def held(self) -> list[int]:
        """What the table `held` holds, as another connection sees it now."""

    def open_transactions(self) -> int:
        """How many transactions others have open."""

    def violation(self) -> list[str]:
        """Statements after which the COMMIT of their transaction fails, and nothing before it does."""

    def ending(self) -> Iterator[str]:
        """Statements of which the last one fails and ends its transaction; to be run as they come, and closed."""

    def slow(self) -> str:
        """A SELECT that takes a third of a second."""

    def own_session(self) -> str:
        """A SELECT of what `kill` takes."""

    def kill(self, session: int) -> None:
        """End the session from outside."""


Make = Callable[[], Engine]
