"""What a session says when a statement fails."""

from __future__ import annotations

import pytest

from transept import ProgrammingError, Registry
from transept.adapters.sqlite import SqliteConfig


def test_placeholders_that_were_given_nothing_are_named() -> None:
    database = SqliteConfig(pool_config={"database": ":memory:"})
    with pytest.raises(ProgrammingError) as caught, Registry([database]).provide_session() as session:
        session.execute("SELECT ? + ?")
    assert caught.value.__notes__ == ["transept: the statement has placeholders (?), and no parameters were given."]
    database.close_pool()
