"""Tables for tests of FastAPI apps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from held import File, Postgres
from servers.server import Server


@pytest.fixture
def file(tmp_path: Path) -> Iterator[File]:
    tables = File(tmp_path / "held.db")
    yield tables
    tables.close()


@pytest.fixture
def other_file(tmp_path: Path) -> Iterator[File]:
    tables = File(tmp_path / "other.db")
    yield tables
    tables.close()


@pytest.fixture
def pg(postgres: Server) -> Iterator[Postgres]:
    tables = Postgres(postgres)
    yield tables
    tables.close()
