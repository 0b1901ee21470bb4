"""One database server: where it is, what it calls itself, and how to reach it."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import quote

Kind = Literal["postgres", "mariadb"]

LABELS: dict[Kind, str] = {"postgres": "PostgreSQL", "mariadb": "MariaDB"}
SCHEMES: dict[Kind, str] = {"postgres": "postgresql", "mariadb": "mysql"}
PATIENCE = 3  # seconds for a connection


class NoServerError(Exception):
    """No server answered; the text says what was tried."""


@dataclass(frozen=True)
class Server:
    """`how` tells where the server came from: a variable, the usual port, or started for this run."""

    kind: Kind
    host: str
    port: int
    user: str
    password: str = field(default="", repr=False)
    database: str = ""
    version: str = ""
    how: str = ""

    @property
    def label(self) -> str:
        return LABELS[self.kind]

    @property
    def dsn(self) -> str:
        """A URL without a driver, as asyncpg and psycopg take it."""
        return self._url(SCHEMES[self.kind])

    def url(self, driver: str) -> str:
        """A SQLAlchemy URL; `driver` is a name such as "asyncpg", "psycopg", "asyncmy" or "pymysql"."""
        return self._url(f"{SCHEMES[self.kind]}+{driver}")

    def connect(self) -> Any:
        """A blocking DB-API connection in autocommit; raises NoServerError when nobody lets us in."""
        return self._connect_postgres() if self.kind == "postgres" else self._connect_mariadb()

    def execute(self, *statements: str) -> list[tuple[Any, ...]]:
        """Run the statements on a connection of their own; the rows of the last one."""
        with closing(self.connect()) as connection, closing(connection.cursor()) as cursor:
            for statement in statements:
                cursor.execute(statement)
            return list(cursor.fetchall()) if cursor.description else []

    def _url(self, scheme: str) -> str:
        password = f":{quote(self.password, safe='')}" if self.password else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{quote(self.user, safe='')}{password}@{host}:{self.port}/{self.database}"

    def _connect_postgres(self) -> Any:
        import psycopg

        try:
            return psycopg.connect(self.dsn, autocommit=True, connect_timeout=PATIENCE)
        except psycopg.OperationalError as error:
            raise NoServerError(" ".join(str(error).split())) from error

    def _connect_mariadb(self) -> Any:
        import pymysql

        where = {"host": self.host, "port": self.port, "user": self.user, "password": self.password}
        try:
            return pymysql.connect(**where, database=self.database or None, autocommit=True, connect_timeout=PATIENCE)
        except pymysql.err.OperationalError as error:
            raise NoServerError(" ".join(str(error).split())) from error
