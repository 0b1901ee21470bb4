"""SQL-first sessions over psycopg and its pool, in both colours."""

from __future__ import annotations

import asyncio
import enum
import inspect
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import Context
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from datetime import time as clock
from decimal import Decimal
from typing import Any
from uuid import UUID

import psycopg
import pytest
from servers import ports
from servers.proxy import FaultProxy
from servers.server import Server

from transept import CommitFailed, unit_of_work
from transept._bridge import run_now
from transept.adapters.psycopg import PsycopgAsyncConfig, PsycopgSyncConfig
from transept.errors import (
    DatabaseUnavailable,
    ImproperConfigurationError,
    PoolBusyOnLoop,
    PoolTimeout,
    UniqueViolationError,
)
from transept.sql.values import Json

each_colour = pytest.mark.parametrize("config", [PsycopgAsyncConfig, PsycopgSyncConfig])


def run(database: Any, body: Callable[[Any], Awaitable[None]]) -> None:
    """On an event loop if the database is async, on this thread without one if it blocks."""

    async def main() -> None:
        try:
            await body(database)
        finally:
            await database.stop()

    if database.blocking:
        run_now(main())
    else:
        asyncio.run(main())


@asynccontextmanager
async def session_of(database: Any) -> AsyncIterator[Any]:
    async with unit_of(database) as unit:
        yield unit.session(database)


@asynccontextmanager
async def unit_of(database: Any) -> AsyncIterator[Any]:
    if database.blocking:
        with unit_of_work() as unit:
            yield unit
    else:
        async with unit_of_work() as unit:
            yield unit


async def got(result: Any) -> Any:
    return await result if inspect.isawaitable(result) else result


@contextmanager
def table(server: Server, name: str, columns: str) -> Iterator[Callable[[], list[Any]]]:
    """What the table holds, as another connection sees it."""
    server.execute(f"DROP TABLE IF EXISTS {name}", f"CREATE TABLE {name} ({columns})")
    try:
        yield lambda: server.execute(f"SELECT * FROM {name} ORDER BY 1")
    finally:
        server.execute(f"DROP TABLE {name}")


class Shade(enum.Enum):
    DARK = "dark"


@dataclass
class Point:
    x: int
    y: int


@each_colour
def test_values_come_back_as_they_went(config: Any, postgres: Server) -> None:
    values = [
        ("uuid", UUID(int=7)),
        ("timestamptz", datetime(2024, 2, 29, 12, 30, tzinfo=UTC)),
        ("date", date(2024, 2, 29)),
        ("time", clock(12, 30, 15)),
        ("interval", timedelta(days=2, seconds=5)),
        ("numeric", Decimal("1.2300")),
        ("bytea", b"\x00\xff"),
        ("jsonb", {"a": [1, None, "x"]}),
        ("json", {"a": {"b": 1.5}}),
        ("int[]", [1, 2, 3]),
        ("bigint", 2**40),
        ("boolean", True),
        ("text", "it's 100% $1 :a ?"),
        ("text", None),
    ]

    async def body(database: Any) -> None:
        async with session_of(database) as session:
            for kind, value in values:
                assert await got(session.select_value(f"SELECT $1::{kind}", [value])) == value
            assert await got(session.select_value("SELECT :v::jsonb", v=Json([1, {"a": 2}]))) == [1, {"a": 2}]
            assert await got(session.select_value("SELECT :v::jsonb", v=Point(1, 2))) == {"x": 1, "y": 2}
            assert await got(session.select_value("SELECT :v::text", v=Shade.DARK)) == "dark"

    run(config(pool_config={"dsn": postgres.dsn}), body)


@each_colour
def test_placeholders_may_have_each_style(config: Any, postgres: Server) -> None:
    async def body(database: Any) -> None:
        async with session_of(database) as session:
            assert await got(session.select_value("SELECT %s::int + %s::int", 1, 2)) == 3
            assert await got(session.select_value("SELECT ?::int + ?::int", 1, 2)) == 3
            assert await got(session.select_value("SELECT $2::int - $1::int", 1, 2)) == 1
            assert await got(session.select_value("SELECT :a::int + :a::int", a=4)) == 8
            assert await got(session.select_value("SELECT count(*) WHERE 2 IN (:ids)", ids=[1, 2])) == 1
            assert await got(session.select_value("SELECT 'a%' LIKE 'a\\%'")) is True

    run(config(pool_config={"dsn": postgres.dsn}), body)


@each_colour
def test_many_sets_a_script_and_a_savepoint_are_kept_together(config: Any, postgres: Server) -> None:
    async def body(database: Any) -> None:
        async with session_of(database) as session:
            result = await got(session.execute_many("INSERT INTO psy VALUES ($1)", [(v,) for v in range(5)]))
            assert result.rows_affected == 5
            await got(session.execute_script("INSERT INTO psy VALUES (7); INSERT INTO psy VALUES (8)"))
            with suppress(UniqueViolationError):
                async with entered(session.transaction()):
                    await got(session.execute("INSERT INTO psy VALUES (9)"))
                    await got(session.execute("INSERT INTO psy VALUES (7)"))
            result = await got(session.execute("UPDATE psy SET v = v + 10 WHERE v < 2 RETURNING v"))
            assert sorted(result.rows) == [(10,), (11,)]
            empty = await got(session.execute("SELECT v AS a, v AS b FROM psy WHERE false"))
            assert (empty.column_names, empty.all()) == (("a", "b"), [])

    with table(postgres, "psy", "v integer PRIMARY KEY") as held:
        run(config(pool_config={"dsn": postgres.dsn}), body)
        assert held() == [(v,) for v in (2, 3, 4, 7, 8, 10, 11)]


@asynccontextmanager
async def entered(block: Any) -> AsyncIterator[Any]:
    if hasattr(block, "__aenter__"):
        async with block as given:
            yield given
    else:
        with block as given:
            yield given


@each_colour
def test_a_hundred_thousand_rows_stream_in_pieces(config: Any, postgres: Server) -> None:
    async def body(database: Any) -> None:
        async with session_of(database) as session:
            stream = session.stream("SELECT v, 'x' AS t FROM generate_series(1, $1::int) AS v", 100_000)
            total = 0
            if database.blocking:
                for row in stream:
                    total += row["v"]
            else:
                async for row in stream:
                    total += row["v"]
            assert total == 100_000 * 100_001 // 2
            half_read = session.stream("SELECT generate_series(1, 10) AS v", chunk_size=2)
            assert await got(next(half_read) if database.blocking else anext(half_read)) == {"v": 1}
            await got(half_read.close() if database.blocking else half_read.aclose())
            assert await got(session.select_value("SELECT count(*) FROM pg_cursors")) == 0

    run(config(pool_config={"dsn": postgres.dsn}), body)


@each_colour
def test_the_connection_is_the_drivers_in_the_same_transaction(config: Any, postgres: Server) -> None:
    async def body(database: Any) -> None:
        async with unit_of(database) as unit:
            connection = unit.connection(database)
            cursor = connection.cursor()
            await got(cursor.execute("INSERT INTO psy VALUES (%s)", 1))
            await got(cursor.execute("SELECT v FROM psy"))
            assert await got(cursor.fetchone()) == (1,)
            assert connection.info.transaction_status is psycopg.pq.TransactionStatus.INTRANS
            assert await got(connection.fileno()) > 0
            with pytest.raises(AttributeError, match="nothing_such"):
                connection.nothing_such  # noqa: B018

    with table(postgres, "psy", "v integer PRIMARY KEY") as held:
        run(config(pool_config={"dsn": postgres.dsn}), body)
        assert held() == [(1,)]


@each_colour
def test_a_lone_read_runs_without_a_transaction_and_a_write_with_one(config: Any, postgres: Server) -> None:
    async def body(database: Any) -> None:
        async with session_of(database) as session:
            await got(session.execute("SELECT 1"))
        proxy.on(b"BEGIN", "count")
        async with session_of(database) as session:
            assert await got(session.select_value("SELECT count(*) FROM psy")) == 0
        assert proxy.hits == 0
        async with session_of(database) as session:
            await got(session.execute("INSERT INTO psy VALUES (1)"))
        assert proxy.hits == 1

    with (
        table(postgres, "psy", "v integer") as held,
        FaultProxy(postgres.host, postgres.port) as proxy,
    ):
        run(config(pool_config={"dsn": through(postgres, proxy.port)}), body)
        assert held() == [(1,)]


def through(server: Server, port: int) -> str:
    return server.dsn.replace(f":{server.port}/", f":{port}/")


@each_colour
def test_a_commit_of_an_aborted_transaction_is_an_error(config: Any, postgres: Server) -> None:
    async def body(database: Any) -> None:
        with pytest.raises(CommitFailed):
            async with session_of(database) as session:
                await got(session.execute("INSERT INTO psy VALUES (1)"))
                with suppress(UniqueViolationError):
                    await got(session.execute("INSERT INTO psy VALUES (1)"))

    with table(postgres, "psy", "v integer PRIMARY KEY") as held:
        run(config(pool_config={"dsn": postgres.dsn}), body)
        assert held() == []


@each_colour
def test_a_session_that_was_changed_is_reset_for_the_next(config: Any, postgres: Server) -> None:
    async def body(database: Any) -> None:
        async with session_of(database) as session:
            await got(session.execute("SET statement_timeout = '7s'"))
        async with session_of(database) as session:
            assert await got(session.select_value("SHOW statement_timeout")) == "0"
            assert await got(session.select_value("SHOW default_transaction_read_only")) == "on"

    run(config(pool_config={"dsn": postgres.dsn, "max_size": 1, "options": "-c work_mem=5MB"}), body)


@each_colour
def test_who_uses_the_pool_past_us_gets_connections_as_they_are_without_us(config: Any, postgres: Server) -> None:
    pools: list[Any] = []

    async def body(database: Any) -> None:
        async with session_of(database) as session:
            ours = await got(session.select_value("SELECT pg_backend_pid()"))
        pool = await got(database.provide_pool())
        assert pools == [pool]
        async with entered(pool.connection()) as connection:
            assert connection.autocommit is False
            cursor = await got(connection.execute("SHOW default_transaction_read_only"))
            assert await got(cursor.fetchone()) == ("off",)
            await got(connection.execute("SET statement_timeout = '7s'"))
            await got(connection.execute("INSERT INTO psy VALUES (%s)", [connection.info.backend_pid]))
        assert await got(pool_is_left(pool)) == 1
        async with session_of(database) as session:
            assert await got(session.select_value("SELECT pg_backend_pid()")) == ours
            assert await got(session.select_value("SHOW default_transaction_read_only")) == "on"
            assert await got(session.select_value("SHOW statement_timeout")) == "0"

    database = config(pool_config={"dsn": postgres.dsn, "max_size": 1})
    database.when_pooled(pools.append)
    with table(postgres, "psy", "v integer") as held:
        run(database, body)
        assert len(held()) == 1


def pool_is_left(pool: Any) -> int:
    available: int = pool.get_stats()["pool_available"]
    return available


def test_an_exhausted_pool_names_its_holders(postgres: Server) -> None:
    async def body(database: Any) -> None:
        async with session_of(database) as session:
            await session.begin()

            async def other() -> None:
                async with session_of(database) as second:
                    await second.execute("SELECT 1")

            with pytest.raises(PoolTimeout) as caught:
                await asyncio.create_task(other(), context=Context())
            assert len(caught.value.holders) == 1
            assert caught.value.seconds == 0.2

    run(PsycopgAsyncConfig(pool_config={"dsn": postgres.dsn, "max_size": 1}, pool_timeout=0.2), body)


def test_a_blocking_session_waits_for_no_slot_on_an_event_loop(postgres: Server) -> None:
    database = PsycopgSyncConfig(pool_config={"dsn": postgres.dsn, "max_size": 1}, pool_timeout=0.2)

    def held_by_a_thread() -> None:
        with unit_of_work() as unit:
            unit.session(database).begin()
            taken.set()
            release.wait(5)

    async def on_the_loop() -> None:
        with unit_of_work() as unit, pytest.raises(PoolBusyOnLoop) as caught, pytest.warns():
            unit.session(database).execute("SELECT 1")
        assert caught.value.in_use == 1

    taken, release = threading.Event(), threading.Event()
    thread = threading.Thread(target=held_by_a_thread)
    thread.start()
    taken.wait(5)
    try:
        began = time.monotonic()
        asyncio.run(on_the_loop())
        assert time.monotonic() - began < 0.15
        with pytest.raises(PoolTimeout), unit_of_work() as unit:
            unit.session(database).execute("SELECT 1")
    finally:
        release.set()
        thread.join()
        database.close_pool()


@each_colour
def test_a_server_that_is_down_is_told_at_once_and_back_at_once(
    config: Any, postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(database: Any) -> None:
        await database.start()
        for _ in range(3):
            began = time.monotonic()
            with pytest.raises(DatabaseUnavailable, match="refused"):
                async with session_of(database) as session:
                    await got(session.execute("SELECT 1"))
            assert time.monotonic() - began < 1
        with FaultProxy(postgres.host, postgres.port):
            for _ in range(3):
                async with session_of(database) as session:
                    assert await got(session.select_value("SELECT 1")) == 1

    sock = ports.bound()  # nobody listens yet
    monkeypatch.setattr("servers.proxy.ports.bound", lambda: sock)
    run(config(pool_config={"dsn": through(postgres, sock.getsockname()[1])}), body)
    sock.close()


@each_colour
def test_without_a_timeout_what_is_free_is_given(config: Any, postgres: Server) -> None:
    async def body(database: Any) -> None:
        pool = await got(database.provide_pool())
        while not pool.get_stats()["pool_available"]:
            await (asyncio.sleep(0.01) if not database.blocking else done_after(0.01))
        async with session_of(database) as session:
            assert await got(session.select_value("SELECT 1")) == 1

    run(config(pool_config={"dsn": postgres.dsn, "min_size": 1}, pool_timeout=0), body)


async def done_after(seconds: float) -> None:
    time.sleep(seconds)  # noqa: ASYNC251 - there is no loop


@each_colour
def test_who_waits_while_the_server_refuses_connections_is_told_why(config: Any, postgres: Server) -> None:
    """One connection is in use, and may come back; so the others wait for it."""

    role = "psy_one"
    with suppress(psycopg.errors.UndefinedObject):
        postgres.execute(f"DROP ROLE {role}")
    postgres.execute(f"CREATE ROLE {role} LOGIN CONNECTION LIMIT 1")

    async def second_connection(database: Any) -> None:
        pool = await got(database.provide_pool())
        async with entered(pool.connection()):
            with pytest.raises(DatabaseUnavailable, match="too many connections for role") as caught:
                async with session_of(database) as session:
                    await got(session.execute("SELECT 1"))
            assert not isinstance(caught.value, PoolTimeout)

    try:
        dsn = {"dsn": postgres.dsn, "user": role, "timeout": 0.3}
        run(config(pool_config=dsn), second_connection)
    finally:
        postgres.execute(f"DROP ROLE {role}")


@each_colour
def test_an_eager_database_that_is_down_fails_at_start(config: Any, postgres: Server) -> None:
    async def body(database: Any) -> None:
        with pytest.raises(DatabaseUnavailable):
            await database.start()

    with ports.bound() as sock:
        run(config(pool_config={"dsn": through(postgres, sock.getsockname()[1])}, eager=True), body)


@each_colour
def test_connections_that_died_in_the_pool_are_replaced(config: Any, postgres: Server) -> None:
    async def body(database: Any) -> None:
        for _ in range(2):
            async with session_of(database) as session:
                pid = await got(session.select_value("SELECT pg_backend_pid()"))
            postgres.execute(f"SELECT pg_terminate_backend({pid}, 5000)")
        async with session_of(database) as session:
            await got(session.execute("INSERT INTO psy VALUES (1)"))

    with table(postgres, "psy", "v integer") as held:
        run(config(pool_config={"dsn": postgres.dsn, "max_size": 2}), body)
        assert held() == [(1,)]


@each_colour
def test_what_configure_sets_is_there_after_a_reset(config: Any, postgres: Server) -> None:
    def configure(connection: Any) -> Any:
        return connection.execute("SET work_mem = '6MB'")

    async def awaited(connection: Any) -> None:
        await connection.set_autocommit(True)
        await configure(connection)

    def blocking(connection: Any) -> None:
        connection.autocommit = True
        configure(connection)

    async def body(database: Any) -> None:
        for _ in range(2):
            async with session_of(database) as session:
                assert await got(session.select_value("SHOW work_mem")) == "6MB"
                await got(session.execute("SET work_mem = '7MB'"))
        pool = await got(database.provide_pool())
        async with entered(pool.connection()) as connection:
            assert connection.autocommit is True

    run(
        config(
            pool_config={
                "dsn": postgres.dsn,
                "max_size": 1,
                "configure": blocking if config is PsycopgSyncConfig else awaited,
            }
        ),
        body,
    )


@each_colour
def test_who_has_a_connection_of_the_drivers_pool_is_named_as_its_user(config: Any, postgres: Server) -> None:
    async def body(database: Any) -> None:
        pool = await got(database.provide_pool())
        async with entered(pool.connection()):
            with pytest.raises(PoolTimeout, match="a user of the driver's pool"):
                async with session_of(database) as session:
                    await got(session.execute("SELECT 1"))
        assert database._own_pool().in_use == 0

    run(config(pool_config={"dsn": postgres.dsn, "max_size": 1, "timeout": 0.1}), body)


def test_a_task_cancelled_while_it_waits_for_a_connection_takes_none(postgres: Server) -> None:
    async def body(database: Any) -> None:
        async def read() -> None:
            async with session_of(database) as session:
                await session.begin()

        async with session_of(database) as session:
            await session.begin()
            waiting = asyncio.create_task(read(), context=Context())
            await asyncio.sleep(0.05)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        await asyncio.create_task(read(), context=Context())
        assert database._own_pool().in_use == 0

    run(PsycopgAsyncConfig(pool_config={"dsn": postgres.dsn, "max_size": 1}, pool_timeout=2), body)


def test_threads_share_a_pool_and_each_unit_is_kept_or_not_as_a_whole(postgres: Server) -> None:
    database = PsycopgSyncConfig(pool_config={"dsn": postgres.dsn, "max_size": 3})

    def work(number: int) -> None:
        for turn in range(10):
            with suppress(KeyError), unit_of_work() as unit:
                unit.session(database).execute("INSERT INTO psy VALUES (:v)", v=100 * number + turn)
                if turn % 5 == 0:
                    raise KeyError

    with table(postgres, "psy", "v integer") as held:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        database.close_pool()
        assert held() == [(100 * number + turn,) for number in range(8) for turn in range(10) if turn % 5]


def test_a_task_cancelled_in_a_statement_leaves_nothing(postgres: Server) -> None:
    async def body(database: Any) -> None:
        async def slow() -> None:
            async with session_of(database) as session:
                await session.execute("INSERT INTO psy VALUES (1)")
                await session.execute("SELECT pg_sleep(20)")

        task = asyncio.create_task(slow())
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with session_of(database) as session:
            assert await session.select_value("SELECT count(*) FROM psy") == 0

    with table(postgres, "psy", "v integer") as held:
        run(PsycopgAsyncConfig(pool_config={"dsn": postgres.dsn, "max_size": 1}, pool_timeout=3), body)
        assert held() == []


def test_each_loop_has_a_pool_that_is_closed_with_it(postgres: Server) -> None:
    database = PsycopgAsyncConfig(pool_config={"dsn": postgres.dsn, "application_name": "psy_loops"})

    async def body() -> None:
        async with session_of(database) as session:
            assert await session.select_value("SHOW application_name") == "psy_loops"

    for _ in range(2):
        asyncio.run(body())
    deadline = time.monotonic() + 3
    count = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'psy_loops'"
    while postgres.execute(count) != [(0,)]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@each_colour
def test_a_program_that_closes_nothing_ends_quietly(config: Any, postgres: Server) -> None:
    program = f"""
import asyncio, sys
from transept import unit_of_work
from transept.adapters.psycopg import PsycopgAsyncConfig, PsycopgSyncConfig
database = {config.__name__}(pool_config={{"dsn": {postgres.dsn!r}, "min_size": 2}})
async def main():
    async with unit_of_work() as unit:
        await unit.session(database).execute("SELECT 1")
if database.blocking:
    with unit_of_work() as unit:
        unit.session(database).execute("SELECT 1")
else:
    asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=20, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@each_colour
def test_libpq_keywords_and_schemes_with_a_driver_are_taken(config: Any, postgres: Server) -> None:
    async def body(database: Any) -> None:
        async with session_of(database) as session:
            assert await got(session.select_value("SHOW work_mem")) == "5MB"

    apart = {"host": postgres.host, "port": postgres.port, "user": postgres.user, "dbname": postgres.database}
    url = postgres.dsn.replace("postgresql://", "postgresql+psycopg://")
    run(config(pool_config={**apart, "options": "-c work_mem=5MB"}), body)
    run(config(pool_config={"conninfo": url, "kwargs": {"options": "-c work_mem=5MB"}}), body)


@pytest.mark.parametrize(
    ("pool_config", "said"),
    [
        ({"min_sise": 1}, "Did you mean 'min_size'"),
        ({"open": True}, "no option 'open'"),
        ({"dsn": "postgresql://a", "conninfo": "postgresql://b"}, "give one of them"),
        ({"dsn": "nonsense"}, "'dsn'. cannot be read .*: a URL is needed"),
        ({"dsn": "postgresql://h:abc/d"}, "'port'.='abc': a whole number"),
        ({"dsn": "postgresql://h/d?sslmod=x"}, "no option 'sslmod'. Did you mean 'sslmode'"),
        ({"dsn": 5}, "'dsn'.=5: a str"),
        ({"host": "h", "port": "abc"}, "'port'.='abc': a whole number"),
        ({"min_size": 5, "max_size": 2}, "'min_size'.=5: at most max_size=2"),
        ({"min_size": "3"}, "'min_size'.='3': a whole number from 0"),
        ({"max_size": 0}, "'max_size'.=0: a whole number from 1"),
        ({"kwargs": 3}, "'kwargs'.=3: a Mapping"),
        ({"database": "app"}, "Did you mean 'dbname'"),
        ({"db": "app"}, "Did you mean 'dbname'"),
        ({"zzzzzz": 1}, r"It has: (\w+, ){9}\w+ and \d+ more"),
        ({"num_workers": 0}, "num_workers"),
        ({"kwargs": dict, "host": "a"}, "callable"),
    ],
)
@each_colour
def test_wrong_settings_are_refused_at_construction(config: Any, pool_config: dict[str, Any], said: str) -> None:
    with pytest.raises(ImproperConfigurationError, match=said):
        config(pool_config=pool_config)


@each_colour
def test_rolling_back_a_connection_that_was_lost_is_no_error(config: Any, postgres: Server) -> None:
    async def body(database: Any) -> None:
        async with session_of(database) as session:
            await got(session.execute("INSERT INTO psy VALUES (1)"))
            number = await got(session.select_value("SELECT pg_backend_pid()"))
            postgres.execute(f"SELECT pg_terminate_backend({number})")
            await got(session.rollback())
            assert await got(session.select_value("SELECT count(*) FROM psy")) == 0

    with table(postgres, "psy", "v integer") as held:
        run(config(pool_config={"dsn": postgres.dsn, "max_size": 1}), body)
        assert held() == []


@pytest.mark.parametrize(
    "conninfo",
    [
        "postgresql://u:hidden@[h/d",
        "postgresql://u:hid%zzden@h/d",
        "oracle://u:hidden@h/d",
        "host=h password=my hidden",
        "password='hidden",
    ],
)
@each_colour
def test_a_conninfo_that_cannot_be_read_shows_no_password(config: Any, conninfo: str) -> None:
    with pytest.raises(ImproperConfigurationError, match="cannot be read") as caught:
        config(pool_config={"conninfo": conninfo})
    assert "hid" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("sys.modules['psycopg_pool'] = None", "import of psycopg_pool halted"),
        ("os.environ['PSYCOPG_IMPL'] = 'nonsense'", "requested psycopg implementation 'nonsense' unknown"),
    ],
)
def test_without_psycopg_it_is_said_what_to_install_and_what_psycopg_says(missing: str, said: str) -> None:
    program = f"import os, sys; {missing}; import transept.adapters.psycopg"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=False)
    last = done.stderr.strip().split("\n")[-1]
    assert last.startswith("ImportError: transept.adapters.psycopg needs psycopg and psycopg_pool: pip install")
    assert said in last
