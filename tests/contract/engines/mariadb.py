"""MariaDB.

It has no deferred constraints. A COMMIT that fails is had from a backup's lock, which stops commits: the session waits
for a second and gets error 1205.
"""

from __future__ import annotations

from typing import Any

from servers.server import Server

from contract.engines.postgres import on_port

SCHEMA = (
    "DROP TABLE IF EXISTS held",
    "DROP TABLE IF EXISTS uniques",
    "CREATE TABLE held (v integer) ENGINE = InnoDB",
)


class MariaDB:
    name = "mariadb"
    can = frozenset({"late", "kill", "wire", "slow", "peek"})

    def __init__(self, server: Server) -> None:
        self.server = server
        self._look: Any = server.connect()
        self._lock: Any = None
        for statement in SCHEMA:
            self._query(statement)

    def reset(self) -> None:
        self._unlock()
        self._query("TRUNCATE held")

    def close(self) -> None:
        self._unlock()
        self._look.close()

    def url(self, driver: str, port: int | None = None) -> str:
        return on_port(self.server.url(driver), port)

    def held(self) -> list[int]:
        return [v for (v,) in self._query("SELECT v FROM held ORDER BY v")]

    def open_transactions(self) -> int:
        return int(
            self._query(
                "SELECT count(*) FROM information_schema.innodb_trx t JOIN information_schema.processlist p "
                "ON p.id = t.trx_mysql_thread_id WHERE p.db = database() AND p.id <> connection_id()"
            )[0][0]
        )

    def violation(self) -> list[str]:
        self._lock = self.server.connect()
        with self._lock.cursor() as cursor:
            for stage in ("START", "FLUSH", "BLOCK_DDL", "BLOCK_COMMIT"):
                cursor.execute(f"BACKUP STAGE {stage}")
        return ["SET SESSION lock_wait_timeout = 1"]

    def slow(self) -> str:
        return "SELECT SLEEP(0.3)"

    def own_session(self) -> str:
        return "SELECT connection_id()"

    def kill(self, session: int) -> None:
        self._query(f"KILL {session}")

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _query(self, statement: str) -> list[Any]:
        with self._look.cursor() as cursor:
            cursor.execute(statement)
            return list(cursor.fetchall())
