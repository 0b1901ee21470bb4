"""Databases of different families and colours in one app end together."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient

from transept import CommitFailed, PartlyCommitted, ProgrammingError
from transept.adapters.asyncpg import AsyncpgConfig
from transept.adapters.sqlite import SqliteConfig
from transept.alchemy import SQLAlchemyAsyncConfig, SQLAlchemySyncConfig
from transept.extensions.starlette import Transept

NAMES = ("awaiting", "blocking", "raw", "wire")


@pytest.fixture
def databases(tmp_path, postgres):
    for name in NAMES[:3]:
        with closing(sqlite3.connect(tmp_path / f"{name}.db")) as connection:
            connection.executescript(
                "CREATE TABLE held (v INTEGER); CREATE TABLE parent (id INTEGER PRIMARY KEY);"
                "CREATE TABLE child (p REFERENCES parent (id) DEFERRABLE INITIALLY DEFERRED)"
            )
    postgres.execute("DROP TABLE IF EXISTS several", "CREATE TABLE several (v integer)")
    same = {"commit_mode": "autocommit"}
    return [
        SQLAlchemyAsyncConfig(
            connection_string=f"sqlite+aiosqlite:///{tmp_path}/awaiting.db", bind_key="awaiting", **same
        ),
        SQLAlchemySyncConfig(connection_string=f"sqlite:///{tmp_path}/blocking.db", bind_key="blocking", **same),
        SqliteConfig(pool_config={"database": f"{tmp_path}/raw.db"}, bind_key="raw", **same),
        AsyncpgConfig(pool_config={"dsn": postgres.dsn}, bind_key="wire", **same),
    ]


@pytest.fixture
def held(tmp_path, postgres):
    def look():
        found = []
        for name in NAMES[:3]:
            with closing(sqlite3.connect(tmp_path / f"{name}.db")) as connection:
                found.append([v for (v,) in connection.execute("SELECT v FROM held")])
        return [*found, [v for (v,) in postgres.execute("SELECT v FROM several")]]

    return look


def post(databases, then, status=201):
    async def endpoint(request):
        state = request.state
        await state.awaiting_session.execute(text("INSERT INTO held VALUES (1)"))
        state.blocking_session.execute(text("INSERT INTO held VALUES (2)"))
        state.raw_session.execute("INSERT INTO held VALUES (3)")
        await state.wire_session.execute("INSERT INTO several VALUES (4)")
        await then(state)
        return Response(status_code=status)

    app = Starlette(routes=[Route("/", endpoint, methods=["POST"])])
    Transept(databases, app)
    with TestClient(app) as client:
        return client.post("/").status_code


pytestmark = pytest.mark.filterwarnings("ignore::transept.BlockingCallWarning")


def test_all_are_kept(databases, held):
    async def then(state):
        pass

    assert post(databases, then) == 201
    assert held() == [[1], [2], [3], [4]]


def test_a_status_that_keeps_nothing_rolls_all_back(databases, held):
    async def then(state):
        pass

    assert post(databases, then, status=409) == 409
    assert held() == [[], [], [], []]


def test_all_are_checked_before_the_first_commits(databases, held):
    async def then(state):
        with pytest.raises(ProgrammingError):
            await state.wire_session.execute("SELECT nonsense")

    with pytest.raises(CommitFailed, match="'wire'"):
        post(databases, then)
    assert held() == [[], [], [], []]


def test_a_later_failure_says_what_was_kept_and_what_was_not(databases, held):
    async def then(state):
        state.blocking_session.execute(text("INSERT INTO child VALUES (9)"))

    with pytest.raises(PartlyCommitted) as caught:
        post(databases, then)
    assert caught.value.committed == ("awaiting",)
    assert caught.value.failed == "blocking"
    assert caught.value.rolled_back == ("raw", "wire")
    assert isinstance(caught.value.__cause__, IntegrityError)
    assert held() == [[1], [], [], []]
