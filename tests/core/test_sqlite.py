"""SQLite as a web app needs it: who begins how, and what a file is given at its first connections."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from transept import unit_of_work
from transept.alchemy import EngineConfig, SQLAlchemyAsyncConfig, SQLAlchemySyncConfig

pytestmark = pytest.mark.anyio

INSERT = text("INSERT INTO held VALUES (1)")
COUNT = text("SELECT count(*) FROM held")
HASTY = EngineConfig(connect_args={"timeout": 0.2})


async def test_an_apps_own_session_can_read_while_the_unit_has_written(tmp_path):
    config = SQLAlchemyAsyncConfig(connection_string=f"sqlite+aiosqlite:///{tmp_path}/held.db", engine_config=HASTY)
    own = config.create_session_maker()
    async with own.begin() as session:
        await session.execute(text("CREATE TABLE held (v INTEGER)"))
    async with unit_of_work() as unit:
        await unit.session(config).execute(INSERT)
        async with own() as session:
            assert await session.scalar(COUNT) == 0


def test_an_apps_own_session_can_read_while_a_blocking_unit_has_written(tmp_path):
    config = SQLAlchemySyncConfig(connection_string=f"sqlite:///{tmp_path}/held.db", engine_config=HASTY)
    own = config.create_session_maker()
    with own.begin() as session:
        session.execute(text("CREATE TABLE held (v INTEGER)"))
    with unit_of_work() as unit:
        unit.session(config).execute(INSERT)
        with own() as session:
            assert session.scalar(COUNT) == 0
    config.get_engine().dispose()
