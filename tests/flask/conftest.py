"""Fixtures of Flask apps over the tests' databases."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from flask_site import TABLES, Site, site_of
from held import File, Postgres


@pytest.fixture(params=TABLES)
def tables(request: pytest.FixtureRequest) -> File | Postgres:
    """The tests' tables in each engine."""
    made: File | Postgres = request.getfixturevalue({"sqlite": "file", "postgres": "pg"}[request.param])
    return made


@pytest.fixture
def site(tables: File | Postgres) -> Iterator[Site]:
    """An app over a blocking SQLAlchemy database that commits by status."""
    with site_of(tables, tables.sync_config()) as made:
        yield made


@pytest.fixture
def async_site(tables: File | Postgres) -> Iterator[Site]:
    """The same over an async one."""
    with site_of(tables, tables.config()) as made:
        yield made


@pytest.fixture
def pg_site(pg: Postgres) -> Iterator[Site]:
    """As `site`, where only PostgreSQL can show it."""
    with site_of(pg, pg.sync_config()) as made:
        yield made


@pytest.fixture
def file_site(file: File) -> Iterator[Site]:
    """As `site`, where one engine is enough."""
    with site_of(file, file.sync_config()) as made:
        yield made
