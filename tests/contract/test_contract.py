"""The contract suite: every case in every cell where it applies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from servers.found import needed

from contract.cases import CASES, Case
from contract.engines.mariadb import MariaDB
from contract.engines.postgres import Postgres
from contract.engines.sqlite import SQLiteFile, SQLiteMemory
from contract.families.alchemy_async import AlchemyAsync
from contract.families.alchemy_sync import AlchemySync
from contract.families.dbconnect import OverDBConnect
from contract.families.raw_aiosqlite import RawAiosqlite
from contract.families.raw_asyncpg import RawAsyncpg
from contract.families.raw_mysql import RawAsyncmy, RawPyMySQL
from contract.families.raw_psycopg import RawPsycopgAsync, RawPsycopgSync
from contract.families.raw_sqlite3 import RawSqlite3
from contract.frameworks.context import ContextFramework
from contract.frameworks.fastapi import FastAPIFramework
from contract.frameworks.flask import AsyncFlaskFramework, FlaskClientFramework, FlaskFramework
from contract.frameworks.litestar import CoveredLitestarFramework, LitestarFramework, MountedLitestarFramework
from contract.frameworks.served import SERVED
from contract.frameworks.starlette import StarletteFramework
from contract.frameworks.units import OWN_UNITS
from contract.frameworks.wsgi import WSGIFramework
from contract.world import World

FRAMEWORKS: list[Any] = [
    StarletteFramework,
    FastAPIFramework,
    LitestarFramework,
    CoveredLitestarFramework,
    MountedLitestarFramework,
    ContextFramework,
    WSGIFramework,
    FlaskFramework,
    AsyncFlaskFramework,
    FlaskClientFramework,
    *SERVED,
    *OWN_UNITS,
]
FAMILIES: list[Any] = [
    AlchemyAsync,
    AlchemySync,
    OverDBConnect,
    RawAsyncpg,
    RawSqlite3,
    RawAiosqlite,
    RawAsyncmy,
    RawPyMySQL,
    RawPsycopgAsync,
    RawPsycopgSync,
]
ENGINES: dict[str, Any] = {
    "sqlite": lambda config: SQLiteFile(),
    "memory": lambda config: SQLiteMemory(),
    "postgres": lambda config: Postgres(needed(config, "postgres")),
    "mariadb": lambda config: MariaDB(needed(config, "mariadb")),
}
CAN = {"sqlite": SQLiteFile.can, "memory": SQLiteMemory.can, "postgres": Postgres.can, "mariadb": MariaDB.can}


def cells() -> Iterator[tuple[str, Any, Any, str, str]]:
    for framework in FRAMEWORKS:
        for family in FAMILIES:
            if not framework().takes(family):
                continue
            seen = getattr(framework(), "seen", lambda family: family)(family)
            for engine, drivers in family.drivers.items():
                for driver in drivers:
                    column = family.name, engine, driver
                    if column[1:] in getattr(framework, "leaves_out", ()):
                        continue
                    if column not in getattr(framework, "columns", {column}):
                        continue
                    name = f"{framework.name}/{family.name}/{engine}" + (f"/{driver}" if len(drivers) > 1 else "")
                    yield name, framework, seen, engine, driver


def applies(case: Case, framework: Any, family: Any, engine: str) -> bool:
    if case.name not in getattr(framework, "cases", {case.name}) or case.name in getattr(framework, "lacks", ()):
        return False
    can = framework.can | family.can | CAN[engine] | {"blocking" if family.blocking else "awaiting"}
    return case.needs <= can and not case.lacks & can


@pytest.fixture(scope="module")
def engines(request: pytest.FixtureRequest) -> Iterator[Any]:
    made: dict[str, Any] = {}

    def get(name: str) -> Any:
        if name not in made:
            made[name] = ENGINES[name](request.config)
        return made[name]

    yield get
    for engine in made.values():
        engine.close()


@pytest.mark.parametrize(
    ("cell", "case"),
    [
        pytest.param(cell, case, id=f"{cell[0]}-{case.name}")
        for cell in cells()
        for case in CASES
        if applies(case, cell[1], cell[2], cell[3])
    ],
)
def test_contract(cell: Any, case: Case, engines: Any) -> None:
    _, framework, family, engine_name, driver = cell
    engine = engines(engine_name)
    engine.reset()
    world = World(framework(), family(), engine, driver)
    world.framework.run(lambda: case.run(world), world.stop)
