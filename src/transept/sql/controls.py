"""Statements that begin or end a transaction, in the app's own words.

Rule 1: BEGIN, COMMIT and ROLLBACK as text are the session's own `begin`, `commit` and `rollback`.
Rule 2: a script is a part of the unit of work, so it begins and ends nothing.
Rule 3: what would end a transaction so that the unit could not know is refused.
"""

from __future__ import annotations

from typing import Literal

from transept.errors import OutsideScope, UsageError
from transept.sql.kinds import Kind, kind_of
from transept.sql.tokens import WORD, cut, split

__all__ = ["Control", "control_of", "read_too_late", "refuse_control", "statements_of"]

Control = Literal["begin", "commit", "rollback"]

CONTROLS: dict[str, Control] = {
    "BEGIN": "begin",
    "START": "begin",
    "COMMIT": "commit",
    "END": "commit",
    "ABORT": "rollback",
    "ROLLBACK": "rollback",
}
# Two-phase commits, and MySQL's switch: verbs that do so always, or with this word.
BEYOND = {
    "PREPARE": "TRANSACTION",
    "COMMIT": "PREPARED",
    "ROLLBACK": "PREPARED",
    "XA": "",
    "SET": "AUTOCOMMIT",
}


def control_of(sql: str, kind: Kind, dialect: str) -> Control | None:
    """What a statement does that begins or ends a transaction; None if it does not.

    Raises:
        UsageError: in a way that a unit of work could not keep.
    """
    if kind.verb not in CONTROLS and kind.verb not in BEYOND and kind.verb != "COPY":
        return None
    words = [word for part in cut(sql, dialect)[::2] for word in WORD.findall(part.upper())]
    if kind.verb in BEYOND and (not BEYOND[kind.verb] or BEYOND[kind.verb] in words):
        raise UsageError(
            f"{sql.strip()!r}: this would end the transaction, or keep what follows, past the unit of work."
        )
    if kind.verb == "COPY":
        if dialect == "postgresql" and {"STDIN", "STDOUT"} & set(words):
            raise UsageError(
                f"{sql.strip()!r}: execute() sends and takes no rows of COPY: use the driver's own methods, on the "
                "connection that get_connection() gives."
            )
        return None
    what = CONTROLS.get(kind.verb)
    if what == "rollback" and "TO" in words:
        return None
    if what == "begin" and words[1:] not in ([], ["WORK"], ["TRANSACTION"]):
        raise UsageError(
            f"{sql.strip()!r}: a transaction begins by itself with its first statement, or with begin(). How it is to "
            "be is for the database's own settings, or on PostgreSQL for SET TRANSACTION as its first statement."
        )
    return what


def statements_of(script: str, dialect: str) -> list[str]:
    """The statements of a script.

    Raises:
        UsageError: one of them begins or ends a transaction.
    """
    statements = split(script, dialect)
    for statement in statements:
        refuse_control(statement, kind_of(statement, dialect), dialect)
    return statements


def refuse_control(sql: str, kind: Kind, dialect: str) -> None:
    """Refuse a statement that begins or ends a transaction where only execute() may.

    Raises:
        UsageError: it is one.
    """
    if kind.session and control_of(sql, kind, dialect) is not None:
        raise UsageError(
            "scripts, streams and execute_many() are a part of the unit of work, which begins and ends by itself, so "
            f"they cannot begin, commit or roll back: leave out\n    {sql.strip()}"
        )


def read_too_late(database: str) -> OutsideScope:
    """The error for a stream whose rows are gone."""
    return OutsideScope(
        f"a stream on database {database!r} was read after its transaction had ended: read it to its end before, or "
        "open it inside the generator that streams the body."
    )
