"""Finds the tests' servers: the one that a variable names, else the one on the usual port, else one started here.

A variable is a promise: when it is set and nobody answers, that is an error, not a reason to look elsewhere.
Each server is looked for once, when it is first asked for, and gets a database of this run's own.
"""

from __future__ import annotations

import atexit
import os
import re
import secrets
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import pytest

from servers import started
from servers.ports import HOST
from servers.server import LABELS, Kind, NoServerError, Server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Attempt = tuple[str, Callable[[ExitStack], Server]]

SWITCH = "--nothing-left-out"
SERVERS = pytest.StashKey["Servers"]()
VARIABLES: dict[Kind, str] = {"postgres": "TRANSEPT_TEST_POSTGRES", "mariadb": "TRANSEPT_TEST_MARIADB"}
USUAL: dict[Kind, Server] = {
    "postgres": Server("postgres", HOST, 5432, "postgres", database="postgres", how=f"{HOST}:5432"),
    "mariadb": Server("mariadb", HOST, 3306, "root", how=f"{HOST}:3306"),
}


def servers(config: pytest.Config) -> Servers:
    """The servers of this run; each is looked for once, when it is first asked for, which may be during collection."""
    if SERVERS not in config.stash:
        config.stash[SERVERS] = Servers(everything=everything(config))
    return config.stash[SERVERS]


def everything(config: pytest.Config) -> bool:
    """Whether the switch is on: nothing may be left out."""
    return bool(config.getoption(SWITCH))


def needed(config: pytest.Config, kind: Kind) -> Server:
    """The server; without one the test that asks is skipped, and counted in the line at the end of the run."""
    server = servers(config).find(kind)
    if server is None:
        pytest.skip(f"needs {LABELS[kind]}: {servers(config).why_not(kind)}")
    return server


@dataclass
class Servers:
    """The servers of one run. `everything`: start what does not answer, and let a missing server be an error."""

    everything: bool = False
    _looked: dict[Kind, Server | NoServerError] = field(default_factory=dict)
    _cleanup: ExitStack = field(default_factory=ExitStack)

    @property
    def postgres(self) -> Server | None:
        return self.find("postgres")

    @property
    def mariadb(self) -> Server | None:
        return self.find("mariadb")

    def find(self, kind: Kind) -> Server | None:
        """The server with a database of its own; None when there is none and that may be. Else raises NoServerError."""
        found = self._look(kind)
        if isinstance(found, Server):
            return found
        if self.everything or VARIABLES[kind] in os.environ:
            raise found
        return None

    def why_not(self, kind: Kind) -> str:
        """What was tried to find the server; empty when it is there."""
        found = self._look(kind)
        return str(found) if isinstance(found, NoServerError) else ""

    def close(self) -> None:
        """Drop the databases and stop what was started."""
        self._cleanup.close()
        self._looked.clear()

    def _look(self, kind: Kind) -> Server | NoServerError:
        if kind not in self._looked:
            atexit.register(self.close)
            self._looked[kind] = self._first(kind)
        return self._looked[kind]

    def _first(self, kind: Kind) -> Server | NoServerError:
        tried = []
        for how, attempt in attempts(kind, everything=self.everything):
            try:
                server = attempt(self._cleanup)
                return self._cleanup.enter_context(own_database(server))
            except NoServerError as error:
                tried.append(f"{how}: {error}")
        return NoServerError(f"no {LABELS[kind]}; tried " + "; ".join(tried))


def attempts(kind: Kind, *, everything: bool = False) -> Iterator[Attempt]:
    variable = VARIABLES[kind]
    if variable in os.environ:
        yield variable, lambda _: named(kind, os.environ[variable])
        return
    yield USUAL[kind].how, lambda _: USUAL[kind]
    if kind == "postgres":
        yield "starting the wheel's", lambda cleanup: cleanup.enter_context(started.postgres())
    elif everything:
        yield "starting this machine's", lambda cleanup: cleanup.enter_context(started.mariadb())


def named(kind: Kind, url: str) -> Server:
    """The server that a URL from the environment means. Errors do not show the URL: it may hold a password."""
    parts = urlsplit(url)
    schemes = {"postgres": ("postgresql", "postgres"), "mariadb": ("mysql", "mariadb")}[kind]
    if parts.scheme not in schemes or not parts.hostname or parts.query:
        raise NoServerError(f"must be a URL like {schemes[0]}://user:password@host:port/database, without parameters")
    usual = USUAL[kind]
    return replace(
        usual,
        host=parts.hostname,
        port=parts.port or usual.port,
        user=unquote(parts.username or usual.user),
        password=unquote(parts.password or ""),
        database=unquote(parts.path.strip("/")) or usual.database,
        how=VARIABLES[kind],
    )


@contextmanager
def own_database(server: Server) -> Iterator[Server]:
    """A new database on the server, dropped after the block, whoever is still connected to it."""
    name = f"transept_test_{os.getpid()}_{secrets.token_hex(4)}"
    version = str(server.execute("SELECT version()" if server.kind == "mariadb" else "SHOW server_version")[0][0])
    server.execute(f"CREATE DATABASE {name}")
    try:
        yield replace(server, database=name, version=re.split(r"[^\d.]", version)[0])
    finally:
        drop(server, name)


def drop(server: Server, name: str) -> None:
    if server.kind == "postgres":
        server.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        return
    # MariaDB would wait for a forgotten transaction, for a year by default
    for (connection,) in server.execute(f"SELECT id FROM information_schema.processlist WHERE db = '{name}'"):
        with suppress(Exception):
            server.execute(f"KILL {connection}")
    server.execute("SET lock_wait_timeout = 10", f"DROP DATABASE IF EXISTS {name}")
