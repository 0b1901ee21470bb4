"""One session over two engines (`binds`): its commit is several COMMITs, of which a later one may fail."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest
from sqlalchemy import event
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from transept import PartlyCommitted, unit_of_work
from transept._bridge import run_now
from transept.alchemy import SQLAlchemySyncConfig, SyncSessionConfig
from transept.hosts import PlainHost
from transept.unit import Unit


class Base(DeclarativeBase):
    pass


class First(Base):
    __tablename__ = "first"
    id: Mapped[int] = mapped_column(primary_key=True)


class Second(Base):
    __tablename__ = "second"
    id: Mapped[int] = mapped_column(primary_key=True)


def file(path):
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            "CREATE TABLE first (id INTEGER PRIMARY KEY); CREATE TABLE second (id INTEGER PRIMARY KEY);"
            "CREATE TABLE child (p REFERENCES second (id) DEFERRABLE INITIALLY DEFERRED)"
        )
    return path


def held(path, table):
    with closing(sqlite3.connect(path)) as connection:
        return [v for (v,) in connection.execute(f"SELECT id FROM {table}")]


@pytest.fixture
def paths(tmp_path):
    return file(tmp_path / "one.db"), file(tmp_path / "two.db")


class LaterCommitsFail:
    """Engines commit in any order: whichever is not the first finds a violation that shows only at COMMIT."""

    def __init__(self, *engines):
        self.commits = 0
        for engine in engines:
            event.listen(engine, "commit", self)

    def __call__(self, connection):
        self.commits += 1
        if self.commits > 1:
            connection.exec_driver_sql("INSERT INTO child VALUES (9)")


@pytest.fixture
def engines(paths):
    made = [SQLAlchemySyncConfig(connection_string=f"sqlite:///{path}").get_engine() for path in paths]
    yield made
    for engine in made:
        engine.dispose()


def over(engines):
    binds = dict(zip((First, Second), engines, strict=True))
    return SQLAlchemySyncConfig(engine_instance=engines[0], session_config=SyncSessionConfig(binds=binds))


def test_a_session_whose_later_commit_fails_says_what_was_kept(engines, paths):
    LaterCommitsFail(*engines)
    with pytest.raises(PartlyCommitted) as raised, unit_of_work() as unit:
        unit.session(over(engines)).add_all([First(id=1), Second(id=1)])
    kept = [path for path, table in zip(paths, ("first", "second"), strict=True) if held(path, table)]
    assert [str(path) in raised.value.failed for path in paths] == [path not in kept for path in paths]
    assert [str(path) in raised.value.committed[0] for path in paths] == [path in kept for path in paths]
    assert len(kept) == 1
    assert isinstance(raised.value.__cause__, IntegrityError)
    assert not hasattr(raised.value, "__notes__"), "nothing more went wrong"
    assert [engine.pool.checkedout() for engine in engines] == [0, 0]


def test_a_session_whose_first_commit_fails_keeps_nothing(engines, paths):
    fails = LaterCommitsFail(*engines)
    fails.commits = 1
    with pytest.raises(IntegrityError) as raised, unit_of_work() as unit:
        unit.session(over(engines)).add_all([First(id=1), Second(id=1)])
    assert "all was rolled back" in raised.value.__notes__[0]
    assert [held(paths[0], "first"), held(paths[1], "second")] == [[], []]
    assert [engine.pool.checkedout() for engine in engines] == [0, 0]


def test_the_unit_goes_on_after_a_partial_failure(engines, paths):
    fails = LaterCommitsFail(*engines)
    config = over(engines)
    unit = Unit(PlainHost(), "this test")
    session = unit.session(config)
    session.add_all([First(id=1), Second(id=1)])
    with pytest.raises(PartlyCommitted):
        run_now(unit.settle(lambda database: True))
    fails.commits = -9
    session.add_all([First(id=2), Second(id=2)])
    run_now(unit.finish(lambda database: True))
    assert [held(paths[0], "first")[-1:], held(paths[1], "second")[-1:]] == [[2], [2]]
