"""What a sandbox refuses, and what it finds out about a test."""

from __future__ import annotations

from collections.abc import Sequence

from transept.errors import UsageError

__all__ = ["NestedInSandbox", "SandboxBusy", "SandboxError", "SandboxLeak", "SandboxLost"]


class SandboxError(UsageError):
    """The root of what the testing kit raises."""


class SandboxBusy(SandboxError):  # noqa: N818 - says what is so, as its family does
    """A unit waited for the sandbox's connection, and another did not give it up.

    ``holder`` says who has it, with the line that took it.
    """

    def __init__(self, database: str, holder: str, how: str) -> None:
        super().__init__(database, holder, how)
        self.database = database
        self.holder = holder
        self.how = how

    def __str__(self) -> str:
        return (
            f"the sandbox has one connection to database {self.database!r}, {self.holder} has a transaction open on "
            f"it, and {self.how}. Units of work that overlap in a sandbox wait for each other: end that one first."
        )


class NestedInSandbox(SandboxError):  # noqa: N818 - says what is so, as its family does
    """A unit of work of its own was begun inside an open one that has the sandbox's connection.

    ``holder`` says who has it, with the line that took it.
    """

    def __init__(self, database: str, holder: str) -> None:
        super().__init__(database, holder)
        self.database = database
        self.holder = holder

    def __str__(self) -> str:
        return (
            f"a unit of work of its own cannot use database {self.database!r} here: it was begun inside {self.holder}, "
            "which has a transaction open on the sandbox's one connection. It could only be a savepoint of that one, "
            "and would be undone with it, while in production its commit stands alone. End the outer transaction "
            "first, or test this with real commits."
        )


class SandboxLeak(SandboxError):  # noqa: N818 - says what is so, as its family does
    """A test ended with transactions open. ``leaks`` has one line for each, with the line of code that began it."""

    def __init__(self, leaks: Sequence[str]) -> None:
        super().__init__(tuple(leaks))
        self.leaks = tuple(leaks)

    def __str__(self) -> str:
        return f"at the end of the sandbox, {'; '.join(self.leaks)}. End it: leave its block, or close its session."


class SandboxLost(SandboxError):  # noqa: N818 - says what is so, as its family does
    """The sandbox's own transaction is gone, so nothing can be undone any more, and what was written may be kept."""

    def __init__(self, database: str, reason: str) -> None:
        super().__init__(database, reason)
        self.database = database
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"the sandbox's transaction on database {self.database!r} is gone: {self.reason}. MySQL and MariaDB "
            "commit at every CREATE, ALTER, DROP and TRUNCATE and roll back at a deadlock (1213), SQLite rolls back "
            "at OR ROLLBACK and a full disk, and a lost connection ends it everywhere. What the test had written "
            "before may be in the database now: test this with real commits, and clean up."
        )
