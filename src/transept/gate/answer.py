"""What both gates say the same: which statuses keep, what a doubtful outcome is answered, what is worth a warning."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transept.database import Database, Handle
from transept.errors import CommitInDoubt, DatabaseUnavailable, LoopTimeout, OpenCursorError
from transept.policy import Policy
from transept.unit import Settled, Unit

__all__ = ["READING_METHODS", "always", "answer_to", "at_start", "between_chunks", "never", "outcome_of", "report"]

logger = logging.getLogger("transept")

SUCCESS = Policy("autocommit")
READING_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})


def outcome_of(status: int) -> Callable[[Database | None], bool]:
    """What a response with this status keeps: each database decides by its own policy, none means a success does."""

    def keeps(database: Database | None) -> bool:
        return (SUCCESS if database is None else database.policy).keeps(status)

    return keeps


def always(database: Database | None) -> bool:
    return True


def never(database: Database | None) -> bool:
    return False


def between_chunks(database: Database, handle: Handle) -> bool:
    """What is not settled between two chunks of a body: a manual database, and one that is being read."""
    return database.policy.manual or handle.reading()


def at_start(status: int) -> Callable[[Database, Handle], bool]:
    """What is not settled when a response with this status starts: a cursor that was told to live on.

    Raises:
        OpenCursorError: a cursor that was not.
    """

    def spare(database: Database, handle: Handle) -> bool:
        if status >= 400 or not handle.reading():
            return False
        if not database.keep_transaction_for_body:
            raise OpenCursorError(database.key)
        return True

    return spare


def report(unit: Unit, settled: Settled, status: int) -> bool:
    """Warn when the client is told of a success whose work was not kept; returns whether it did."""
    if (unit.doomed is None and not settled.forgotten) or not SUCCESS.keeps(status):
        return False
    if unit.doomed is not None:
        logger.warning("%s answers %d, but its work was rolled back: %s.", unit.name, status, unit.doomed)
    else:
        logger.warning(
            "%s answers %d, but its work on %s was rolled back: nothing committed it, and commit_mode is 'manual'. "
            "Call commit() on the session, or use commit_mode='autocommit'.",
            unit.name,
            status,
            ", ".join(map(repr, settled.forgotten)),
        )
    return True


@dataclass(frozen=True)
class PlainAnswer:
    """A small response that a gate makes itself."""

    status: int
    reason: str
    body: bytes
    more: tuple[tuple[str, str], ...] = ()

    @property
    def headers(self) -> list[tuple[str, str]]:
        length = str(len(self.body))
        return [("content-type", "text/plain; charset=utf-8"), ("content-length", length), *self.more]

    def messages(self) -> list[dict[str, Any]]:
        """As ASGI messages."""
        headers = [(name.encode(), value.encode()) for name, value in self.headers]
        return [
            {"type": "http.response.start", "status": self.status, "headers": headers},
            {"type": "http.response.body", "body": self.body, "more_body": False},
        ]


IN_DOUBT = PlainAnswer(
    503,
    "Service Unavailable",
    b"The outcome is in doubt: what this request did may or may not have been kept. Look before you repeat it.",
)
TOO_LATE = PlainAnswer(
    503,
    "Service Unavailable",
    b"The answer took too long. What this request did may or may not have been kept. Look before you repeat it.",
)
UNAVAILABLE = PlainAnswer(
    503,
    "Service Unavailable",
    b"The database cannot be reached now. Try again later.",
    (("retry-after", "1"),),
)


def answer_to(failure: BaseException) -> PlainAnswer | None:
    """What a gate answers to an error that nobody else has answered; None leaves it to the server's 500."""
    if isinstance(failure, CommitInDoubt):
        return IN_DOUBT
    if isinstance(failure, LoopTimeout):
        return TOO_LATE
    return UNAVAILABLE if isinstance(failure, DatabaseUnavailable) else None
