"""What a session says when a statement fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from transept import ProgrammingError, Registry
from transept.adapters.sqlite import SqliteConfig


def test_placeholders_that_were_given_nothing_are_named() -> None:
    database = SqliteConfig(pool_config={"database": ":memory:"})
    with pytest.raises(ProgrammingError) as caught, Registry([database]).provide_session() as session:
        session.execute("SELECT ? + ?")
    assert caught.value.__notes__ == ["transept: the statement has placeholders (?), and no parameters were given."]
    database.close_pool()


def test_a_pragma_does_not_reach_the_next_unit(tmp_path: Path) -> None:
    database = SqliteConfig(pool_config={"database": str(tmp_path / "notes.db")})
    registry = Registry([database])
    with registry.provide_session() as session:
        session.execute_script("PRAGMA query_only = 1")
    with registry.provide_session() as session:
        session.execute("CREATE TABLE notes (v INTEGER)")
        assert session.select_value("PRAGMA query_only") == 0
    database.close_pool()
