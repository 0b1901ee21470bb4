"""What is not asked of PostgreSQL, and that nobody can tell: neither the client nor a second connection."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from held import calling, eventually
from servers.found import drop
from servers.proxy import FaultProxy
from servers.server import Server
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from transept import unit_of_work
from transept.adapters.asyncpg import AsyncpgConfig
from transept.extensions.starlette import Transept

pytestmark = pytest.mark.anyio

TENANT = "SELECT current_setting('app.tenant', true) AS v"
SET = "set_config('app.tenant', 't1', false)"
PLPGSQL = "CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql AS $$ {} $$"
CALLED = "SELECT f()"


class Own:
    """A database of the test's own, and a second connection to it."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.name = f"transept_saved_{secrets.token_hex(4)}"
        server.execute(f"CREATE DATABASE {self.name}")
        self.look: Any = psycopg.connect(server.dsn, dbname=self.name, autocommit=True)
        self.look.execute("CREATE TABLE held (v integer); CREATE TABLE audit (note text)")

    def close(self) -> None:
        self.look.close()
        drop(self.server, self.name)

    def rows(self, sql: str) -> list[Any]:
        return [row[0] for row in self.look.execute(sql)]

    def held(self) -> list[int]:
        return self.rows("SELECT v FROM held ORDER BY v")

    def locks(self) -> int:
        sql = "SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database"
        [count] = self.rows(f"{sql} WHERE locktype = 'advisory' AND datname = current_database()")
        return int(count)

    def config(self, port: int | None = None, user: str | None = None, **settings: Any) -> AsyncpgConfig:
        """One connection, so that each request gets the one before's."""
        where = {"host": self.server.host, "port": port or self.server.port, "user": user or self.server.user}
        options = {**where, "password": self.server.password or None, "database": self.name, "max_size": 1}
        options.update(settings.pop("pool_config", {}))
        return AsyncpgConfig(**{"pool_config": options, "commit_mode": "autocommit", "pool_timeout": 2.0, **settings})


async def timed(client: Any, now: list[float]) -> None:
    """From now on it is `now[0]`."""
    await client.config.provide_pool()
    client.config._pools.get().savings.clock = lambda: now[0]


@pytest.fixture
def own(postgres: Server) -> Iterator[Own]:
    database = Own(postgres)
    yield database
    database.close()


class Client:
    """An app that runs the statements it is sent, all in one unit of work."""

    def __init__(self, config: AsyncpgConfig) -> None:
        self.config = config
        self.app = Starlette(routes=[Route("/", self._endpoint, methods=["POST"])])
        Transept(config, self.app)

    async def ask(self, *statements: str, status: int = 200, how: str = "execute") -> list[Any]:
        """The rows of the last statement, as lists."""
        async with calling(self.app, raises=True) as client:
            answer = await client.post("/", json={"run": statements, "status": status, "how": how})
        assert answer.status_code == status
        rows: list[Any] = answer.json()
        return rows

    async def ask_anew(self, *statements: str, status: int = 200, how: str = "execute") -> list[Any]:
        """As it is when the server has been asked again."""
        self.config._pools.get().savings.ddl += 1
        await asyncio.sleep(1.01)
        return await self.ask(*statements, status=status, how=how)

    async def close(self) -> None:
        await self.config.stop()

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _endpoint(self, request: Any) -> Response:
        order = await request.json()
        session, rows = request.state.db_session, []
        for sql in order["run"]:
            if order["how"] == "stream":
                rows = [row async for row in session.stream(sql)]
            elif order["how"] == "many":
                await session.execute_many(sql, [[]])
            elif order["how"] == "raw":
                await request.state.db_connection.fetch(sql)
            else:
                rows = (await session.execute(sql)).all()
        body = json.dumps([[*row.values()] for row in rows], default=str)
        return Response(body, order["status"], media_type="application/json")


# What has code of its own to change a session with: what it does, and the statement that makes it do that.
CODE = {
    "a view": (f"CREATE VIEW w AS SELECT {SET}", "SELECT * FROM w"),
    "a view that locks": ("CREATE VIEW w AS SELECT pg_advisory_lock(7)::text", "SELECT * FROM w"),
    "a function in SQL": (f"CREATE FUNCTION f() RETURNS text LANGUAGE sql AS $$ SELECT {SET} $$", CALLED),
    "in capitals": (
        f"CREATE FUNCTION f() RETURNS text LANGUAGE sql AS $$ SELECT {SET.replace('set', 'SET')} $$",
        CALLED,
    ),
    "with a body of the standard": (f"CREATE FUNCTION f() RETURNS text BEGIN ATOMIC SELECT {SET}; END", CALLED),
    "a default of an argument": (
        f"CREATE FUNCTION f(a text DEFAULT {SET}) RETURNS text LANGUAGE sql AS 'SELECT a'",
        CALLED,
    ),
    "PERFORM": (PLPGSQL.format(f"BEGIN PERFORM {SET}; RETURN 1; END"), CALLED),
    "SET": (PLPGSQL.format("BEGIN SET app.tenant = 't1'; RETURN 1; END"), CALLED),
    "SET after FOR UPDATE": (
        PLPGSQL.format(
            "DECLARE r record; BEGIN FOR r IN SELECT 1 FROM held FOR UPDATE NOWAIT LOOP "
            "SET app.tenant = 't1'; END LOOP; RETURN 1; END"
        ),
        CALLED,
    ),
    "dynamic SQL": (
        PLPGSQL.format("BEGIN EXECUTE 'SELECT set_' || 'config(''app.tenant'', ''t1'', false)'; RETURN 1; END"),
        CALLED,
    ),
    "quoted names": (
        f'CREATE SCHEMA "My Own"; CREATE FUNCTION "My Own"."Do It"() RETURNS text LANGUAGE sql AS $$ SELECT {SET} $$',
        'SELECT "My Own"."Do It"()',
    ),
    "another name of the server's own": (
        "CREATE FUNCTION f(text, text, boolean) RETURNS text LANGUAGE internal AS 'set_config_by_name'",
        "SELECT f('app.tenant', 't1', false)",
    ),
    "an operator": (
        "CREATE OPERATOR ### (FUNCTION = pg_try_advisory_lock, LEFTARG = int, RIGHTARG = int)",
        "SELECT 1 ### 2",
    ),
    "an aggregate": (
        "CREATE AGGREGATE f(text, boolean) (SFUNC = set_config, STYPE = text, INITCOND = 'app.tenant')",
        "SELECT f('t1', false)",
    ),
    "a cast": (
        "CREATE TYPE own AS (v text); CREATE FUNCTION f(own) RETURNS text LANGUAGE sql AS "
        f"$$ SELECT {SET} $$; CREATE CAST (own AS text) WITH FUNCTION f(own)",
        "SELECT ROW('x')::own::text",
    ),
    "a default": (f"ALTER TABLE audit ALTER note SET DEFAULT {SET}", "INSERT INTO audit DEFAULT VALUES"),
    "a check": (f"ALTER TABLE audit ADD CHECK ({SET} IS NOT NULL)", "INSERT INTO audit VALUES ('x')"),
    "a domain": (f"CREATE DOMAIN own AS text CHECK ({SET} <> value)", "SELECT 'x'::own"),
    "a domain's default": (
        f"CREATE DOMAIN own AS text DEFAULT {SET}; CREATE TABLE owned (v own)",
        "INSERT INTO owned DEFAULT VALUES",
    ),
    "a rule": (f"CREATE RULE r AS ON INSERT TO held DO ALSO SELECT {SET}", "INSERT INTO held VALUES (1)"),
    "a rule's condition": (
        f"CREATE RULE r AS ON INSERT TO held WHERE {SET} = 'no' DO INSTEAD NOTHING",
        "INSERT INTO held VALUES (1)",
    ),
    "a trigger": (
        f"CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM {SET}; RETURN new; END $$; "
        "CREATE TRIGGER g BEFORE INSERT ON held FOR EACH ROW EXECUTE FUNCTION f()",
        "INSERT INTO held VALUES (1)",
    ),
    "a trigger's condition": (
        f"INSERT INTO held VALUES (1); CREATE TRIGGER g BEFORE UPDATE ON held FOR EACH ROW WHEN ({SET} IS NOT NULL) "
        "EXECUTE FUNCTION suppress_redundant_updates_trigger()",
        "UPDATE held SET v = 2",
    ),
    "an index": (
        f"CREATE FUNCTION f(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN PERFORM {SET}; RETURN 1; END $$; "
        "CREATE INDEX ON held (f(v)); SELECT set_config('app.tenant', '', false)",
        "INSERT INTO held VALUES (1)",
    ),
    "the settings as a view": (
        "SELECT 1",
        "UPDATE pg_settings SET setting = 't1' WHERE name = 'application_name'",
    ),
    "a view of the settings": (
        "CREATE VIEW w AS SELECT * FROM pg_settings",
        "UPDATE w SET setting = 't1' WHERE name = 'application_name'",
    ),
}


@pytest.mark.parametrize("name", CODE)
@pytest.mark.parametrize("status", [200, 400])
async def test_what_the_databases_code_does_to_a_session_reaches_nobody_else(own: Own, name: str, status: int) -> None:
    ddl, sql = CODE[name]
    own.look.execute(ddl)
    async with Client(own.config()) as client:
        await client.ask(sql, status=status)
        assert await client.ask(TENANT) in ([[None]], [[""]])
        assert await client.ask("SELECT current_setting('application_name')") == [[""]]
        assert own.locks() == 0


TEXTS = {
    "by name": f"SELECT {SET}",
    "by a quoted name": f'SELECT "set_config"{SET[10:]}',
    "by an escaped name": f'SELECT U&"set\\005fconfig"{SET[10:]}',
    "after a comment of two lines": f"SELECT 1, -- '\n{SET}",
    "after a nested comment": f"SELECT 1, /* /* */ ' */ {SET}",
    "as text": f"SELECT word FROM ts_stat('SELECT to_tsvector({SET.replace(chr(39), chr(39) * 2)})')",
    "in a CTE": f"WITH c AS MATERIALIZED (SELECT {SET}) SELECT * FROM c",
    "explained": f"EXPLAIN ANALYZE SELECT {SET}",
    "SET": "SET app.tenant = 't1'",
    "DO": f"DO $$ BEGIN PERFORM {SET}; END $$",
    "an advisory lock": "SELECT pg_advisory_lock(7)",
    "the settings": "UPDATE pg_settings SET setting = 't1' WHERE name = 'application_name'",
}


NO_ROWS = ("SET", "DO", "the settings")
WAYS = [(name, how) for name in TEXTS for how in ("execute", "stream", "many", "raw")]


@pytest.mark.parametrize(("name", "how"), [way for way in WAYS if way[1] != "stream" or way[0] not in NO_ROWS])
async def test_what_a_statement_does_to_the_session_reaches_nobody_else(own: Own, name: str, how: str) -> None:
    async with Client(own.config()) as client:
        await client.ask(TEXTS[name], how=how)
        assert await client.ask(TENANT) in ([[None]], [[""]])
        assert await client.ask("SELECT current_setting('application_name')") == [[""]]
        assert own.locks() == 0


@pytest.mark.parametrize("status", [200, 400])
@pytest.mark.parametrize(
    "sql",
    [
        "SELECT nextval('numbers')",
        "SELECT * FROM writes",
        "SELECT note('x')",
        "SELECT hidden('x')",
        "WITH w AS (INSERT INTO audit VALUES ('x') RETURNING 1) SELECT * FROM w",
        "EXPLAIN ANALYZE INSERT INTO audit VALUES ('x')",
        "CALL noted()",
        "DO $$ BEGIN INSERT INTO audit VALUES ('x'); END $$",
        "SELECT 1 AS a INTO kept",
    ],
)
async def test_what_looks_like_a_read_and_writes_is_kept_or_not_as_the_client_is_told(
    own: Own, sql: str, status: int
) -> None:
    own.look.execute(
        "CREATE SEQUENCE numbers; CREATE FUNCTION note(text) RETURNS text LANGUAGE plpgsql AS $$ "
        "BEGIN INSERT INTO audit VALUES ($1); RETURN $1; END $$; CREATE VIEW writes AS SELECT note('x'); "
        "CREATE PROCEDURE noted() LANGUAGE sql AS $$ INSERT INTO audit VALUES ('x') $$"
    )
    if "hidden" in sql:
        own.look.execute(
            "CREATE FUNCTION hidden(text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN INSERT INTO audit VALUES ($1); "
            "RETURN $1; EXCEPTION WHEN others THEN RETURN 'lost'; END $$"
        )
    async with Client(own.config()) as client:
        await client.ask(sql, status=status)
    written = own.rows("SELECT note FROM audit") + own.rows("SELECT relname FROM pg_class WHERE relname = 'kept'")
    assert len(written) == (status == 200 and "nextval" not in sql)


async def test_a_notification_of_a_request_that_failed_is_not_delivered(own: Own) -> None:
    own.look.execute("CREATE FUNCTION tell() RETURNS void LANGUAGE sql AS $$ SELECT pg_notify('n', 'f') $$; LISTEN n")
    async with Client(own.config()) as client:
        await client.ask("SELECT pg_notify('n', 'no')", status=400)
        await client.ask("SELECT tell()::text", status=400)
        await client.ask("SELECT pg_notify('n', 'yes')")
    assert [one.payload for one in own.look.notifies(timeout=0.5)] == ["yes"]


async def test_locks_are_held_until_the_unit_ends(own: Own) -> None:
    own.look.execute("INSERT INTO held VALUES (1); SET lock_timeout = '50ms'")
    config = own.config()
    for sql in ("SELECT * FROM held FOR UPDATE", "SELECT * FROM held FOR SHARE", "TABLE held FOR UPDATE"):
        async with unit_of_work() as unit:
            await unit.session(config).execute(sql)
            with pytest.raises(psycopg.errors.LockNotAvailable):
                own.look.execute("UPDATE held SET v = 2")
    async with unit_of_work() as unit:
        await unit.session(config).execute("SELECT pg_advisory_xact_lock(1)")
        assert own.locks() == 1
    assert own.locks() == 0
    await config.stop()


async def test_reads_after_a_write_see_it_and_are_in_its_transaction(own: Own) -> None:
    config = own.config()
    async with Client(config) as client:
        read = "SELECT count(*) FROM held"
        assert await client.ask(read, read, "INSERT INTO held VALUES (1)", read, status=400) == [[1]]
        assert await client.ask(read) == [[0]]
        async with unit_of_work() as unit:
            session = unit.session(config)
            async with session.transaction():
                before = await session.select_value("SELECT pg_current_xact_id()::text")
                async with session.transaction():
                    assert await session.select_value("SELECT pg_current_xact_id()::text") == before


async def test_a_foreign_table_is_not_read_without_a_transaction(own: Own) -> None:
    if not own.rows("SELECT 1 FROM pg_available_extensions WHERE name = 'postgres_fdw'"):
        pytest.skip("this server has no postgres_fdw")
    own.look.execute(
        "CREATE FUNCTION note() RETURNS text LANGUAGE sql AS "
        "$$ INSERT INTO public.audit VALUES ('x') RETURNING note $$; "
        "CREATE VIEW writes AS SELECT note() AS v; CREATE EXTENSION postgres_fdw; "
        f"CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '{own.server.host}', "
        f"port '{own.server.port}', dbname '{own.name}'); CREATE USER MAPPING FOR CURRENT_USER SERVER far "
        f"OPTIONS (user '{own.server.user}', password '{own.server.password or 'none'}'); "
        "CREATE FOREIGN TABLE far_writes (v text) SERVER far OPTIONS (table_name 'writes')"
    )
    async with Client(own.config()) as client:
        assert await client.ask("SELECT * FROM far_writes", status=400) == [["x"]]
    assert own.rows("SELECT note FROM audit") == []


@pytest.mark.parametrize("extension", ["hstore", "pg_trgm", "citext", "tablefunc", "dblink"])
async def test_the_functions_of_extensions_switch_nothing_off(own: Own, extension: str) -> None:
    if not own.rows(f"SELECT 1 FROM pg_available_extensions WHERE name = '{extension}'"):
        pytest.skip(f"this server has no {extension}")
    own.look.execute(f"CREATE EXTENSION {extension}")
    assert await trips(own, "SELECT 1") == 1


async def test_what_an_extension_sets_by_its_own_name_reaches_nobody_else(own: Own) -> None:
    if not own.rows("SELECT 1 FROM pg_available_extensions WHERE name = 'pg_trgm'"):
        pytest.skip("this server has no pg_trgm")
    own.look.execute("CREATE EXTENSION pg_trgm")
    async with Client(own.config()) as client:
        [[before]] = await client.ask("SELECT show_limit()")
        await client.ask("SELECT set_limit(0.9)")
        assert await client.ask("SELECT show_limit()") == [[before]]


async def test_a_policy_that_sets_something_is_seen(own: Own) -> None:
    user = f"user_{own.name}"
    own.look.execute(
        f"CREATE ROLE {user} LOGIN; INSERT INTO held VALUES (1); GRANT SELECT ON held TO {user}; "
        f"ALTER TABLE held ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON held USING ({SET} IS NOT NULL)"
    )
    try:
        async with Client(own.config(user=user)) as client:
            assert await client.ask("SELECT v FROM held") == [[1]]
            assert await client.ask(TENANT) in ([[None]], [[""]])
    finally:
        own.look.execute(f"DROP OWNED BY {user}; DROP ROLE {user}")


async def test_a_user_who_may_read_nothing_saves_as_well(own: Own) -> None:
    user = f"user_{own.name}"
    own.look.execute(
        f"CREATE ROLE {user} LOGIN; CREATE SCHEMA hidden; CREATE TABLE hidden.t (v int DEFAULT 1 CHECK (v > 0)); "
        "CREATE VIEW hidden.w AS SELECT * FROM hidden.t; "
        "CREATE FUNCTION hidden.f() RETURNS int LANGUAGE sql AS 'SELECT 1'"
    )
    try:
        assert await trips(own, "SELECT 1", user=user) == 1
    finally:
        own.look.execute(f"DROP ROLE {user}")


async def test_the_server_is_asked_without_waiting_for_a_table_that_is_being_altered(own: Own) -> None:
    own.look.execute("CREATE VIEW w AS SELECT v FROM held WHERE v > 0; ALTER TABLE held ADD CHECK (v > 0)")
    async with Client(own.config()) as client:
        with own.look.transaction():
            own.look.execute("ALTER TABLE held ADD w integer DEFAULT 1")
            async with asyncio.timeout(5):
                assert await client.ask("SELECT 1") == [[1]]


# how long what the server said stands


async def test_code_of_somebody_else_is_seen_after_a_minute(own: Own) -> None:
    config, now = own.config(), [0.0]
    async with Client(config) as client:
        await timed(client, now)
        await client.ask("SELECT 1")
        own.look.execute(f"CREATE FUNCTION f() RETURNS text LANGUAGE sql AS $$ SELECT {SET} $$")
        now[0] = 60.1
        await client.ask(CALLED)
        assert await client.ask(TENANT) in ([[None]], [[""]])


@pytest.mark.parametrize("how", ["execute", "raw"])
async def test_code_of_this_process_is_seen_at_once(own: Own, how: str) -> None:
    async with Client(own.config(pool_config={"max_size": 3})) as client, Client(own.config()) as other:
        await asyncio.gather(*(client.ask("SELECT pg_sleep(0.05)") for _ in range(3)))
        await client.ask(f"CREATE FUNCTION f() RETURNS text LANGUAGE sql AS $$ SELECT {SET} $$", how=how)
        await other.ask("SELECT 1")
        for _ in range(2):
            await asyncio.gather(*(client.ask(CALLED) for _ in range(3)))
            assert await client.ask(TENANT) in ([[None]], [[""]])
            await asyncio.sleep(1.01)


async def test_code_that_is_committed_after_the_server_was_asked_is_seen(own: Own) -> None:
    config = own.config(pool_config={"max_size": 2})
    async with Client(config) as client:
        async with unit_of_work() as unit:
            sql = f"CREATE FUNCTION f() RETURNS text LANGUAGE sql AS $$ SELECT {SET} $$"
            await unit.session(config).execute(sql)
            await client.ask("SELECT 1")
            await unit.session(config).commit()
        await client.ask(CALLED)
        assert await client.ask(TENANT) in ([[None]], [[""]])


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
async def test_a_unit_has_one_snapshot_where_the_database_says_so(own: Own, level: str) -> None:
    own.look.execute(f"ALTER DATABASE {own.name} SET default_transaction_isolation = '{level}'")
    config = own.config()
    async with unit_of_work() as unit:
        session = unit.session(config)
        before = await session.select_value("SELECT count(*) FROM held")
        own.look.execute("INSERT INTO held VALUES (1)")
        assert await session.select_value("SELECT count(*) FROM held") == before
    await config.stop()


@pytest.mark.parametrize("by", ["database", "pool_config"])
@pytest.mark.parametrize("bare_reads", [True, False])
async def test_who_may_only_read_cannot_write_through_us(own: Own, by: str, bare_reads: bool) -> None:
    options = {}
    if by == "database":
        own.look.execute(f"ALTER DATABASE {own.name} SET default_transaction_read_only = on")
    else:
        options = {"server_settings": {"default_transaction_read_only": "on"}}
    async with Client(own.config(pool_config=options, bare_reads=bare_reads)) as client:
        assert await client.ask("SELECT 1") == [[1]]
        with pytest.raises(Exception, match="read-only"):
            await client.ask("INSERT INTO held VALUES (1)")


# those who use the driver past us


async def test_users_of_the_drivers_pool_may_write_and_leave_nothing_behind(own: Own) -> None:
    config = own.config()
    async with Client(config) as client:
        await client.ask("SELECT 1")
        pool = await config.provide_pool()
        await pool.execute("INSERT INTO held VALUES (1)")
        async with pool.acquire() as connection:
            await connection.execute("SET app.tenant = 't1'")
            await connection.execute("INSERT INTO held VALUES (2)")
        assert own.held() == [1, 2]
        assert await client.ask(TENANT) in ([[None]], [[""]])
        assert await client.ask("SHOW default_transaction_read_only", how="raw") == []
        assert await client.ask("SELECT current_setting('default_transaction_' || 'rea' || 'd_only')") == [["on"]]


async def test_what_the_apps_own_callbacks_set_is_as_with_asyncpg(own: Own) -> None:
    calls = []

    async def init(connection: Any) -> None:
        calls.append("init")
        await connection.execute("SET app.first = 'init'")

    async def setup(connection: Any) -> None:
        calls.append("setup")
        await connection.execute("SET app.tenant = 'setup'")

    async def reset(connection: Any) -> None:
        calls.append("reset")

    options = {"init": init, "setup": setup, "reset": reset, "server_settings": {"application_name": "mine"}}
    async with Client(own.config(pool_config=options)) as client:
        first = "SELECT current_setting('app.first', true), current_setting('application_name') AS n"
        assert await client.ask(first) == [["init", "mine"]]
        assert await client.ask(TENANT) == [["setup"]]
        assert await client.ask(first) == [["", "mine"]]
    assert calls == ["init", *["setup", "reset"] * 3]


async def test_temporary_tables_and_roles_end_with_their_request(own: Own) -> None:
    async with Client(own.config()) as client:
        await client.ask("CREATE TEMP TABLE own (v int)")
        assert await client.ask("SELECT to_regclass('pg_temp.own')::text") == [[None]]
        await client.ask("SET ROLE pg_monitor")
        assert await client.ask("SELECT current_user = session_user") == [[True]]


# when things go wrong


async def test_an_error_of_a_lone_read_that_is_caught_harms_nothing(own: Own) -> None:
    config = own.config()
    async with unit_of_work() as unit:
        session = unit.session(config)
        with pytest.raises(Exception, match="division"):
            await session.execute("SELECT 1 / 0")
        await session.execute("INSERT INTO held VALUES (1)")
    assert own.held() == [1]
    await config.stop()


async def test_a_lone_read_that_is_cancelled_leaves_the_pool_whole(own: Own) -> None:
    config = own.config()
    async with Client(config) as client:
        await client.ask("SELECT 1")
        reading = asyncio.create_task(client.ask("SELECT pg_sleep(1)"))
        sleeping = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(%' AND state = 'active'"
        assert await eventually(lambda: own.rows(sleeping) == [1])
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert await client.ask("SELECT 1") == [[1]]
        assert (await config.provide_pool()).get_size() == 1
        assert await eventually(lambda: own.rows(sleeping) == [0])


@pytest.mark.parametrize("seconds", [0.0, 61.0])
async def test_a_connection_that_died_in_the_pool_is_replaced(own: Own, seconds: float) -> None:
    now = [0.0]
    with FaultProxy(own.server.host, own.server.port) as proxy:
        async with Client(own.config(proxy.port)) as client:
            await timed(client, now)
            await client.ask("SELECT 1")
            now[0] = seconds
            async with unit_of_work() as unit:
                session = unit.session(client.config)
                proxy.cut_all()  # and the loop has no time to notice
                assert await session.select_value("SELECT 1") == 1


async def test_an_error_of_the_question_itself_saves_nothing_and_harms_nothing(own: Own, caplog: Any) -> None:
    user = f"user_{own.name}"
    own.look.execute(f"CREATE ROLE {user} LOGIN; GRANT INSERT ON held TO {user}; REVOKE ALL ON pg_proc FROM PUBLIC")
    try:
        async with Client(own.config(user=user)) as client:
            assert await client.ask("SELECT 1") == [[1]]
            await client.ask("INSERT INTO held VALUES (1)")
    finally:
        own.look.execute(f"DROP OWNED BY {user}; DROP ROLE {user}")
    assert own.held() == [1]
    assert "no round trips are saved" in caplog.text


async def test_a_pool_that_throws_a_connection_away_forgets_no_ddl(own: Own) -> None:
    config = own.config(pool_config={"max_size": 2})
    async with Client(config) as client:
        async with unit_of_work() as unit:
            session = unit.session(config)
            await session.execute(f"CREATE FUNCTION f() RETURNS text LANGUAGE sql AS $$ SELECT {SET} $$")
            await client.ask("SELECT 1")  # asks the server before the function is there for all
            await (await config.provide_pool()).expire_connections()
            await session.commit()
        await asyncio.sleep(0)
        await client.ask(CALLED)
        assert await client.ask(TENANT) in ([[None]], [[""]])


# what is saved


async def trips(own: Own, *statements: str, user: str | None = None, **switches: Any) -> int:
    """How often a unit with these statements speaks to the server, once all is warm."""
    with FaultProxy(own.server.host, own.server.port) as proxy:
        async with Client(own.config(proxy.port, user, **switches)) as client:
            for _ in range(2):
                await client.ask(*statements)
            proxy.on(b"", "count")
            await client.ask(*statements)
            await asyncio.sleep(0.02)
            return proxy.hits


READ, WRITE = "SELECT v FROM held LIMIT 1", "INSERT INTO held VALUES (1)"


@pytest.mark.parametrize(
    ("statements", "both", "no_bare", "no_skip", "neither"),
    [
        ([READ], 1, 3, 2, 4),
        ([READ, READ], 2, 4, 4, 5),
        ([WRITE], 3, 3, 4, 4),
        ([READ, WRITE], 4, 4, 6, 5),
        ([WRITE, READ], 4, 4, 5, 5),
    ],
)
async def test_each_saving_saves(
    own: Own, statements: list[str], both: int, no_bare: int, no_skip: int, neither: int
) -> None:
    assert await trips(own, *statements) == both
    assert await trips(own, *statements, bare_reads=False) == no_bare
    assert await trips(own, *statements, skip_reset=False) == no_skip
    assert await trips(own, *statements, bare_reads=False, skip_reset=False) == neither


async def test_harmless_code_costs_no_saving(own: Own) -> None:
    own.look.execute(
        "CREATE FUNCTION touched() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN new.v := new.v + 1; "
        "UPDATE audit AS a SET note = 'x'; INSERT INTO audit VALUES ('y'); "
        "IF new.v < 0 THEN RAISE EXCEPTION 'no'; END IF; RETURN new; END $$; "
        "CREATE TRIGGER t BEFORE UPDATE ON held FOR EACH ROW EXECUTE FUNCTION touched(); "
        "CREATE FUNCTION safe(int) RETURNS int LANGUAGE sql SET search_path = public AS 'SELECT $1'; "
        "CREATE VIEW w AS SELECT upper(note) AS u, now() AS n, count(*) OVER () FROM audit; "
        "CREATE TABLE owned (id serial PRIMARY KEY, v int DEFAULT 1 CHECK (v > 0), at timestamptz DEFAULT now())"
    )
    assert await trips(own, READ) == 1


async def test_a_lock_in_each_request_does_not_make_the_server_prove_its_code_each_time(own: Own) -> None:
    assert await trips(own, "SELECT pg_advisory_xact_lock(1)") == 4


async def test_a_lone_read_without_rows_leaves_no_transaction_open(own: Own) -> None:
    open_ones = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    async with Client(own.config()) as client:
        assert await client.ask("SELECT v AS never_seen FROM held") == []
        assert own.rows(f"{open_ones} AND xact_start IS NOT NULL") == []
        await client.ask(WRITE)
    assert own.held() == [1]
