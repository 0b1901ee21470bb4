"""MariaDB.

It has no deferred constraints. A COMMIT that fails is had from a backup's lock, which stops commits: the session waits
for a second and gets error 1205.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

from servers.server import Server

from contract.engines.postgres import on_port

SCHEMA = (
    "DROP TABLE IF EXISTS held",
    "DROP TABLE IF EXISTS locked",
    "CREATE TABLE held (v integer) ENGINE = InnoDB",
    "CREATE TABLE locked (id integer PRIMARY KEY, n integer) ENGINE = InnoDB",
    "INSERT INTO locked VALUES (1, 0), (2, 0)",
)


class MariaDB:
    name = "mariadb"
    can = frozenset({"late", "kill", "wire", "slow", "ends", "peek"})

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

    def ending(self) -> Iterator[str]:
        """A deadlock with one who has written more, so that it is the other transaction that ends."""
        rival = self.server.connect()
        waits = threading.Thread(target=lambda: rival.cursor().execute("UPDATE locked SET n = 1 WHERE id = 1"))
        try:
            with rival.cursor() as cursor:
                cursor.execute("BEGIN")
                cursor.execute(f"INSERT INTO locked VALUES {', '.join(f'({n}, 0)' for n in range(10, 60))}")
                cursor.execute("UPDATE locked SET n = 1 WHERE id = 2")
            yield "UPDATE locked SET n = 1 WHERE id = 1"
            waits.start()
            time.sleep(0.2)  # it waits for the lock
            yield "UPDATE locked SET n = 1 WHERE id = 2"
        finally:
            if waits.is_alive():
                waits.join()
            rival.close()

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
