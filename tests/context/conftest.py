"""The books balance after each test of the context API."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from held import Postgres


@pytest.fixture
def pg(pg: Postgres) -> Iterator[Postgres]:
    """As everywhere; no transaction may be open, and no connection out of a pool, when the test is over."""
    yield pg
    assert (pg.in_transaction(), pg.out_of_pools()) == (0, 0)
