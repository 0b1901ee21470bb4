"""The pytest plugin: one fixture. Imports nothing else until it is used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from transept.database import Database
    from transept.testing import Connections, Sandbox

__all__ = ["transept_connections", "transept_sandbox"]


@pytest.fixture(scope="session")
def transept_connections() -> Iterator[Connections]:
    """The connections of all sandboxes of the run (of this worker, under pytest-xdist), closed at its end."""
    from transept.testing import Connections

    connections = Connections()
    yield connections
    connections.close()


@pytest.fixture
def transept_sandbox(transept_connections: Connections) -> Iterator[Callable[..., Sandbox]]:
    """Call it with databases: what the test does to them is undone at its end, and a transaction left open fails it.

    Takes the keywords of `transept.testing.Sandbox`, and returns one that has begun.
    """
    from contextlib import ExitStack

    from transept.testing import Sandbox

    with ExitStack() as sandboxes:

        def begin(*databases: Database, **settings: Any) -> Sandbox:
            sandbox = Sandbox(*databases, **{"connections": transept_connections, **settings})
            return sandboxes.enter_context(sandbox)

        yield begin
