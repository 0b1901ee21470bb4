"""Transactions that are begun and ended in SQL text."""

from __future__ import annotations

import pytest

from transept import UsageError
from transept.sql.controls import control_of, statements_of
from transept.sql.kinds import kind_of


def control(sql: str, dialect: str = "postgresql") -> str | None:
    return control_of(sql, kind_of(sql, dialect), dialect)


@pytest.mark.parametrize(
    ("sql", "what"),
    [
        ("BEGIN", "begin"),
        ("start transaction;", "begin"),
        ("/* at last */ Commit -- now", "commit"),
        ("END", "commit"),
        ("ABORT", "rollback"),
        ("ROLLBACK -- TO x", "rollback"),
        ("ROLLBACK TO SAVEPOINT x", None),
        ("rollback\nto x", None),
        ("SAVEPOINT x", None),
        ("SELECT 'COMMIT'", None),
        ("SET search_path TO x", None),
        ("PREPARE one AS SELECT 1", None),
    ],
)
def test_what_a_statement_does_to_its_transaction(sql: str, what: str | None) -> None:
    assert control(sql) == what


@pytest.mark.parametrize(
    ("sql", "dialect"),
    [
        ("BEGIN ISOLATION LEVEL SERIALIZABLE", "postgresql"),
        ("BEGIN EXCLUSIVE", "sqlite"),
        ("PREPARE TRANSACTION 'one'", "postgresql"),
        ("XA COMMIT 'one'", "mysql"),
        ("SET autocommit = 1", "mysql"),
        ("SET @@session.autocommit = ON", "mysql"),
    ],
)
def test_what_the_unit_could_not_know_of_is_refused(sql: str, dialect: str) -> None:
    with pytest.raises(UsageError, match=r"BEGIN|PREPARE|XA|SET"):
        control(sql, dialect)


def test_a_script_begins_and_ends_nothing() -> None:
    assert len(statements_of("CREATE TABLE t (v int); INSERT INTO t VALUES (';COMMIT')", "sqlite")) == 2
    with pytest.raises(UsageError, match="leave out\n    COMMIT"):
        statements_of("INSERT INTO t VALUES (1); COMMIT; INSERT INTO t VALUES (2)", "sqlite")
