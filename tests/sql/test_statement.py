"""Placeholders, kinds and scripts, and what real databases make of the texts that come out."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing

import asyncpg
import psycopg
import pytest
from psycopg import AsyncRawCursor, RawCursor
from servers.server import Server

from transept.errors import ParameterError, UsageError
from transept.sql.controls import control_of, statements_of
from transept.sql.kinds import Kind, kind_of
from transept.sql.statement import Notation, forgotten, render, render_many
from transept.sql.tokens import split

ASYNCPG = Notation("postgresql", "numeric", "numeric")
PSYCOPG = Notation("postgresql", "format", "numeric")
SQLITE = Notation("sqlite", "qmark", "qmark")
MYSQL = Notation("mysql", "format", "format")
ROWS = [1, 2, 3]


@pytest.mark.parametrize(
    ("sql", "arguments", "notation", "text", "values"),
    [
        ("SELECT ?, ?", (1, 2), SQLITE, "SELECT ?, ?", [1, 2]),
        ("SELECT ?, ?", (1, 2), ASYNCPG, "SELECT $1, $2", [1, 2]),
        ("SELECT $2, $1, $2", (1, 2), SQLITE, "SELECT ?, ?, ?", [2, 1, 2]),
        ("SELECT $2, $1", (1, 2), ASYNCPG, "SELECT $2, $1", [1, 2]),
        ("SELECT :2, :1", (1, 2), MYSQL, "SELECT %s, %s", [2, 1]),
        ("SELECT %s, '?'", (1,), ASYNCPG, "SELECT $1, '?'", [1]),
        ("SELECT :a, :b, :a", {"a": 1, "b": 2}, ASYNCPG, "SELECT $1, $2, $1", [1, 2]),
        ("SELECT :a, :b, :a", {"b": 2, "a": 1}, SQLITE, "SELECT ?, ?, ?", [1, 2, 1]),
        ("SELECT %(a)s, ':a'", {"a": 1}, PSYCOPG, "SELECT $1, ':a'", [1]),
        ("SELECT @a, @b", {"a": 1}, MYSQL, "SELECT %s, @b", [1]),
        ("SELECT $a, $b", {"a": 1}, SQLITE, "SELECT ?, $b", [1]),
        (
            "SELECT data ?? 'k', ?::int, a ?| b, a ?& b, ?||'x'",
            (1, 2),
            ASYNCPG,
            "SELECT data ? 'k', $1::int, a ?| b, a ?& b, $2||'x'",
            [1, 2],
        ),
        (
            "SELECT a[1:2], b::int, (c):d, e[f:g], :h",
            {"h": 1},
            ASYNCPG,
            "SELECT a[1:2], b::int, (c):d, e[f:g], $1",
            [1],
        ),
        (
            "SELECT /* :a /* :a */ :a */ :a -- :a\n, $$ :a $$, $x$ :a $x$",
            {"a": 1},
            ASYNCPG,
            "SELECT /* :a /* :a */ :a */ $1 -- :a\n, $$ :a $$, $x$ :a $x$",
            [1],
        ),
        ("SELECT E'\\' ?', '\\', ?", (1,), ASYNCPG, "SELECT E'\\' ?', '\\', $1", [1]),
        ("SELECT \"?\", '''?'", (), ASYNCPG, "SELECT \"?\", '''?'", []),
        ('SELECT `?`, "?\\"?", 1--?\n, %s # %s\n', (1,), MYSQL, 'SELECT `?`, "?\\"?", 1--?\n, %s # %%s\n', [1]),
        ("SELECT [?], ?", (1,), SQLITE, "SELECT [?], ?", [1]),
        ("SELECT '50%', 7 %% 2, %s", (1,), MYSQL, "SELECT '50%%', 7 %% 2, %s", [1]),
        ("SELECT '50%%', 7 %% 2, %s", (1,), PSYCOPG, "SELECT '50%', 7 % 2, $1", [1]),
        ("SELECT '50%%', ?", (1,), MYSQL, "SELECT '50%%%%', %s", [1]),
    ],
)
def test_the_placeholders_are_written_as_the_driver_takes_them(sql, arguments, notation, text, values):
    own, given = render(sql, arguments, notation)
    assert (own, list(given)) == (text, values)


def test_without_arguments_the_text_is_untouched():
    sql = "SELECT '50%', data ? 'k', ?? FROM t WHERE a = :b"
    for nothing in ((), [], {}):
        own, values = render(sql, nothing, MYSQL)
        assert own is sql
        assert values == ()


def test_what_fits_already_is_passed_on_as_it_is():
    sql, arguments = "SELECT ?, ?", (1, 2)
    own, values = render(sql, arguments, SQLITE)
    assert own is sql
    assert values is arguments


@pytest.mark.parametrize(
    ("sql", "arguments", "notation", "words", "at"),
    [
        ("SELECT ?, ?, ?", (1, 2), SQLITE, ["3 placeholders, 2 values"], 13),
        ("SELECT ?", (1, 2), SQLITE, ["1 placeholder, 2 values", "([...],)"], None),
        ("SELECT data ? 'k', ?", (1,), ASYNCPG, ["2 placeholders, 1 value", "write ??"], 19),
        ("SELECT $1, $3", (1, 2), ASYNCPG, ["$3 without $2"], 11),
        ("SELECT $0", (1,), ASYNCPG, ["no $0"], 7),
        ("SELECT 1", (1,), SQLITE, ["no placeholder for 1 value", "?, $1, %s or :1"], None),
        ("SELECT 1", {"a": 1}, SQLITE, ["no placeholder for 'a'", ":name"], None),
        ("SELECT :name", {"nam": 1}, SQLITE, ["no value for :name", "did you mean 'nam'?"], 7),
        ("SELECT %(b)s, %(a)s", {"a": 1}, MYSQL, ["no value for %(b)s"], 7),
        ("SELECT :a", {"a": 1, "b": 2}, SQLITE, ["does not use 'b'", "it has :a"], None),
        ("SELECT :a", {1: 1}, SQLITE, ["1 is no str"], None),
        ("SELECT ?", "text", SQLITE, ["'text'", "(value,)"], None),
        ("SELECT ?", 5, SQLITE, ["5", "(value,)"], None),
        ("SELECT 1", {"shema_type": int}, SQLITE, ["'shema_type'", "did you mean the option schema_type?"], None),
        ("SELECT :a", {"a": 1, "chunksize": 9}, SQLITE, ["'chunksize'", "did you mean the option chunk_size?"], None),
        ("SELECT 1", {"value_type": int}, SQLITE, ["value_type is no option here"], None),
        ("v IN :ids", {"ids": [1]}, SQLITE, ["a list belongs inside parentheses: IN (:ids)"], 5),
        ("v NOT IN $1", ([],), ASYNCPG, ["a list belongs inside parentheses: IN ($1)"], 9),
        ("v = ? AND v in\n?", (1, {2}), MYSQL, ["a list belongs inside parentheses: IN (?)"], 15),
        ("v IN (?) AND v IN %s", (["a"],), PSYCOPG, ["parentheses: IN (%s)"], 18),
    ],
)
def test_arguments_that_do_not_fit_are_refused_with_the_place(sql, arguments, notation, words, at):
    with pytest.raises(ParameterError) as caught:
        render(sql, arguments, notation)
    for word in words:
        assert word in str(caught.value)
    assert caught.value.position == at


@pytest.mark.parametrize(
    ("sql", "arguments", "notation", "text", "values"),
    [
        ("x IN (?)", ([1, 2],), SQLITE, "x IN (?, ?)", [1, 2]),
        ("x IN (?, 5, ?)", ([], 2), SQLITE, "x IN (5, ?)", [2]),
        ("x IN (5, %s)", ([],), MYSQL, "x IN (5)", []),
        ("x IN (%s, %s)", ([], ()), MYSQL, "x IN (SELECT NULL FROM DUAL WHERE FALSE)", []),
        ("x in ( $1 )", ({1},), ASYNCPG, "x = ANY ($1 )", [[1]]),
        ("x NOT IN ($1::int)", ((1, 2),), ASYNCPG, "x <> ALL ($1::int[])", [[1, 2]]),
        ("x IN ($1, $2)", ([1, 2], 3), ASYNCPG, "x IN ($1, $2, $3)", [1, 2, 3]),
        ("x NOT IN ($1, $2)", ([], []), ASYNCPG, "x <> ALL ($1)", [[]]),
        ("x IN ($1::int, 5)", ([1, 2],), ASYNCPG, "x IN ($1::int, $2::int, 5)", [1, 2]),
        ("(x, y) IN ($1)", ([(1, 2), (3, 4)],), ASYNCPG, "(x, y) IN (($1, $2), ($3, $4))", [1, 2, 3, 4]),
        ("(x, y) IN (?)", ([(1, 2)],), SQLITE, "(x, y) IN (VALUES (?, ?))", [1, 2]),
        ("x IN (:a) AND y = :a", {"a": [1]}, ASYNCPG, "x = ANY ($1) AND y = $2", [[1], [1]]),
        ("x IN (SELECT y FROM t WHERE z = $1)", ([1],), ASYNCPG, "x IN (SELECT y FROM t WHERE z = $1)", [[1]]),
        ("x = f($1)", ([1],), ASYNCPG, "x = f($1)", [[1]]),
        ("x IN (?)", ("ab",), SQLITE, "x IN (?)", ["ab"]),
        ("min (?)", ([1],), SQLITE, "min (?)", [[1]]),
    ],
)
def test_a_list_inside_in_is_a_list_of_items(sql, arguments, notation, text, values):
    own, given = render(sql, arguments, notation)
    assert (own, list(given)) == (text, values)


def test_a_value_that_is_no_list_may_stand_behind_in():
    assert render("SELECT position('b' IN ?)", ("abc",), ASYNCPG) == ("SELECT position('b' IN $1)", ("abc",))


@pytest.mark.parametrize(
    ("sql", "dialect", "marks"),
    [
        ("SELECT $2, $1, $1", "postgresql", "$2, $1"),
        ("SELECT :name, '%s'", "postgresql", ":name"),
        ("SELECT %(name)s", "mysql", "%(name)s"),
        ("SELECT %s", "mysql", "%s"),
        ("SELECT ?", "sqlite", "?"),
        ("SELECT ?", "mysql", "?"),
    ],
)
def test_placeholders_without_parameters_are_named(sql, dialect, marks):
    said = f"the statement has placeholders ({marks}), and no parameters were given"
    assert forgotten(sql, dialect) == said


@pytest.mark.parametrize(
    ("sql", "dialect"),
    [
        ("SELECT doc ? 'a', doc ?| b", "postgresql"),
        ("SELECT a::int, b[1:2], '$1', $$ $1 $$ -- $1", "postgresql"),
        ("PREPARE p AS SELECT $1", "postgresql"),
        ("CREATE FUNCTION f(int) RETURNS int RETURN $1", "postgresql"),
        ("SELECT @a, 5 % 3", "mysql"),
    ],
)
def test_what_may_be_no_placeholder_is_not_said_to_be_one(sql, dialect):
    assert forgotten(sql, dialect) is None


def test_many_sets_share_one_text():
    assert render_many("x = :a", [{"a": 1}, {"a": 2}], SQLITE) == ("x = ?", [[1], [2]])
    assert render_many("x IN ($1)", [([1],), ([1, 2],)], ASYNCPG) == ("x = ANY ($1)", [[[1]], [[1, 2]]])
    assert render_many("x = ?", [], ASYNCPG) == ("x = ?", [])


def test_many_sets_that_need_several_texts_are_refused():
    with pytest.raises(ParameterError, match="one by one"):
        render_many("x IN (?)", [([1],), ([1, 2],)], SQLITE)
    with pytest.raises(ParameterError) as caught:
        render_many("x = ?", [(1,), (1, 2)], SQLITE)
    assert caught.value.__notes__ == ["in set 2 of 2"]


READ = Kind("SELECT", True, True, False, False)


@pytest.mark.parametrize(
    ("sql", "kind"),
    [
        ("-- hello\n ((SELECT 1) UNION SELECT 2);", READ),
        ("SELECT 1 -- set_config", READ),
        ('SELECT "update", updated_at, temperature FROM t', READ),
        ("SELECT a FROM t FOR NO KEY UPDATE", READ._replace(reads=False)),
        ("SELECT a FROM t FOR\nSHARE", READ._replace(reads=False)),
        ("SELECT a INTO b FROM t", READ._replace(reads=False)),
        ("SELECT a INTO TEMP b FROM t", READ._replace(reads=False, session=True)),
        ("WITH a AS (DELETE FROM t RETURNING b) SELECT * FROM a", READ._replace(reads=False)),
        ("WITH a AS (SELECT 1) INSERT INTO t SELECT * FROM a", Kind("INSERT", False, False, False, False)),
        ("WITH a AS (DELETE FROM t RETURNING b) INSERT INTO u TABLE a", Kind("INSERT", False, False, False, False)),
        ("INSERT INTO t VALUES (1) RETURNING a", Kind("INSERT", True, False, False, False)),
        ("EXPLAIN ANALYZE SELECT 1", Kind("EXPLAIN", True, False, False, False)),
        ("SELECT \"set_config\"('a', 'b', false)", READ._replace(session=True)),
        ("SELECT query_to_xml('x')", READ._replace(session=True)),
        ("SELECT pg_advisory_lock(1)", READ._replace(session=True)),
        ("SET x = 1", Kind("SET", False, False, True, False)),
        ("SELECT 1; SET x = 1", READ._replace(reads=False, session=True, several=True)),
        ("SELECT ';'; -- ;", READ),
        ("", Kind("", False, False, True, False)),
    ],
)
def test_the_kind_of_a_statement_is_read_from_its_text(sql, kind):
    assert kind_of(sql, "postgresql") == kind


@pytest.mark.parametrize(
    ("script", "dialect", "statements"),
    [
        (" a; ;-- c\n; b ';' ; /* ; */", "sqlite", ["a", "b ';'"]),
        ("CREATE FUNCTION f() AS $$ a; b $$; c", "postgresql", ["CREATE FUNCTION f() AS $$ a; b $$", "c"]),
        (
            "CREATE FUNCTION f() BEGIN ATOMIC a; b; END; c",
            "postgresql",
            ["CREATE FUNCTION f() BEGIN ATOMIC a; b; END", "c"],
        ),
        (
            "CREATE TRIGGER r BEGIN a; SELECT CASE WHEN b THEN c END; END; BEGIN; d; END",
            "sqlite",
            ["CREATE TRIGGER r BEGIN a; SELECT CASE WHEN b THEN c END; END", "BEGIN", "d", "END"],
        ),
        (
            "CREATE PROCEDURE p() BEGIN IF a THEN b; END IF; END; c",
            "mysql",
            ["CREATE PROCEDURE p() BEGIN IF a THEN b; END IF; END", "c"],
        ),
        (
            "CREATE RULE r AS ON INSERT TO t DO (a; b); c",
            "postgresql",
            ["CREATE RULE r AS ON INSERT TO t DO (a; b)", "c"],
        ),
        ("/*!50000 SET a = 1 */; # x;\nb", "mysql", ["/*!50000 SET a = 1 */", "# x;\nb"]),
        ("/*M!100100 a; /* ; */ b */; c", "mysql", ["/*M!100100 a", "/* ; */ b */", "c"]),
        ("CREATE TABLE event (id int, begin int); c", "sqlite", ["CREATE TABLE event (id int, begin int)", "c"]),
        ("CREATE TABLE event AS SELECT begin FROM e; c", "mysql", ["CREATE TABLE event AS SELECT begin FROM e", "c"]),
        ("CREATE INDEX i ON event (a); CREATE b", "postgresql", ["CREATE INDEX i ON event (a)", "CREATE b"]),
        (
            "CREATE FUNCTION f(begin int) RETURNS int RETURN 1; c",
            "postgresql",
            ["CREATE FUNCTION f(begin int) RETURNS int RETURN 1", "c"],
        ),
        (
            "CREATE TRIGGER r BEFORE INSERT ON t FOR EACH ROW SET NEW.begin = 1; c",
            "mysql",
            ["CREATE TRIGGER r BEFORE INSERT ON t FOR EACH ROW SET NEW.begin = 1", "c"],
        ),
        (
            "CREATE DEFINER=a@b SQL SECURITY DEFINER VIEW event AS SELECT begin; c",
            "mysql",
            ["CREATE DEFINER=a@b SQL SECURITY DEFINER VIEW event AS SELECT begin", "c"],
        ),
    ],
)
def test_a_script_is_split_into_its_statements(script, dialect, statements):
    assert split(script, dialect) == statements


@pytest.mark.parametrize(
    "words",
    [
        "TRIGGER",
        "TEMP TRIGGER",
        "TEMPORARY TRIGGER",
        "CONSTRAINT TRIGGER",
        "OR REPLACE AGGREGATE FUNCTION",
        "OR REPLACE /* it */ PROCEDURE",
        "DEFINER=`a`@`%` EVENT",
        "DEFINER = root@localhost FUNCTION",
        "DEFINER=CURRENT_USER() PROCEDURE",
        "/*!50003 TRIGGER */",
        "/*!50017 DEFINER=`a`@`b`*/ /*!50003 TRIGGER */",
    ],
)
def test_the_body_of_a_routine_is_a_part_of_its_creation(words):
    created = f"CREATE {words} r BEGIN a; b; END"
    assert split(f"{created}; c", "mysql") == [created, "c"]


@pytest.mark.parametrize(
    "sql", ["/*M! COMMIT */", "/*M!100100 COMMIT */", "/*!50000 COMMIT */", "/*!50000COMMIT*/", "/*!COMMIT*/"]
)
def test_what_mysql_runs_inside_a_comment_is_code(sql):
    kind = kind_of(sql, "mysql")
    assert kind == Kind("COMMIT", False, False, True, False)
    assert control_of(sql, kind, "mysql") == "commit"
    assert kind_of(sql, "sqlite").verb == ""
    with pytest.raises(UsageError, match="cannot begin, commit"):
        statements_of(f"SELECT 1; {sql}", "mysql")


def test_a_commit_behind_a_table_that_is_named_as_a_routine_is_seen():
    with pytest.raises(UsageError, match="leave out\n    COMMIT"):
        statements_of("CREATE TABLE event (id int, begin int); COMMIT", "sqlite")


@pytest.mark.parametrize("sql", ["COMMIT PREPARED 'x'", "ROLLBACK PREPARED 'x'"])
def test_the_end_of_a_prepared_transaction_is_refused(sql):
    with pytest.raises(UsageError, match="past the unit of work"):
        control_of(sql, kind_of(sql, "postgresql"), "postgresql")


# the rows of 1, 2, 3 that each condition finds; every database must agree
CONDITIONS = [
    ("IN (?)", ([1, 3],), [1, 3]),
    ("IN (?)", ([],), []),
    ("NOT IN (?)", ([1, 3],), [2]),
    ("NOT IN (?)", ([],), ROWS),
    ("IN (?, ?)", ([], 2), [2]),
    ("IN (?, 3)", ([1],), [1, 3]),
    ("NOT IN (?, ?)", ([], []), ROWS),
    ("IN (?) AND '50%' = '50%'", ((2,),), [2]),
]
ROW_VALUES = "SELECT v FROM (SELECT 1 AS v UNION SELECT 2 UNION SELECT 3) t WHERE (v, v) IN (?) ORDER BY v"
VALUES = "SELECT v FROM (SELECT 1 AS v UNION SELECT 2 UNION SELECT 3) t WHERE v {} ORDER BY v"


@pytest.mark.parametrize(("condition", "arguments", "rows"), CONDITIONS)
def test_sqlite_finds_the_rows_of_a_list(condition, arguments, rows):
    with closing(sqlite3.connect(":memory:")) as connection:
        sql, values = render(VALUES.format(condition), arguments, SQLITE)
        assert [v for (v,) in connection.execute(sql, values)] == rows
        sql, values = render(ROW_VALUES, ([(1, 1), (2, 3)],), SQLITE)
        assert connection.execute(sql, values).fetchall() == [(1,)]


@pytest.mark.parametrize(("condition", "arguments", "rows"), CONDITIONS)
def test_mariadb_finds_the_rows_of_a_list(mariadb: Server, condition, arguments, rows):
    with closing(mariadb.connect()) as connection, connection.cursor() as cursor:
        cursor.execute(*render(VALUES.format(condition), arguments, MYSQL))
        assert [v for (v,) in cursor.fetchall()] == rows
        cursor.execute(*render(ROW_VALUES, ([(1, 1), (2, 3)],), MYSQL))
        assert cursor.fetchall() == ((1,),)


def test_a_percent_sign_reaches_mariadb_as_it_is(mariadb: Server):
    with closing(mariadb.connect()) as connection, connection.cursor() as cursor:
        cursor.execute(*render("SELECT '50%', 7 % 4, ? /* 100% */", ("%s",), MYSQL))
        assert cursor.fetchall() == (("50%", 3, "%s"),)


@pytest.fixture
def psycopg_connection(postgres: Server) -> Iterator[psycopg.Connection]:
    with psycopg.connect(postgres.dsn, cursor_factory=RawCursor) as connection:
        yield connection


@pytest.mark.parametrize(("condition", "arguments", "rows"), CONDITIONS)
def test_psycopg_finds_the_rows_of_a_list(psycopg_connection, condition, arguments, rows):
    sql, values = render(VALUES.format(condition), arguments, PSYCOPG)
    assert [v for (v,) in psycopg_connection.execute(sql, values)] == rows
    sql, values = render(ROW_VALUES, ([(1, 1), (2, 3)],), PSYCOPG)
    assert psycopg_connection.execute(sql, values).fetchall() == [(1,)]


@pytest.mark.anyio
async def test_asyncpg_finds_the_rows_of_a_list(postgres: Server):
    connection = await asyncpg.connect(postgres.dsn)
    try:
        for condition, arguments, rows in CONDITIONS:
            sql, values = render(VALUES.format(condition), arguments, ASYNCPG)
            assert [v for (v,) in await connection.fetch(sql, *values)] == rows
        sql, values = render("SELECT 1 WHERE 2 IN ($1::bigint)", ([2, 3],), ASYNCPG)
        assert await connection.fetchval(sql, *values) == 1
        sql, values = render("SELECT '{\"k\": 1}'::jsonb ?? ?, '{}'::jsonb ?| ARRAY['k'], ?::int", ("k", 5), ASYNCPG)
        assert tuple(await connection.fetchrow(sql, *values)) == (True, False, 5)
    finally:
        await connection.close()


@pytest.mark.anyio
async def test_an_async_raw_cursor_takes_operators_and_casts(postgres: Server):
    connection = await psycopg.AsyncConnection.connect(postgres.dsn, cursor_factory=AsyncRawCursor)
    async with connection:
        sql, values = render("SELECT '{\"k\": 1}'::jsonb ? :k, '50%', :n::int", {"k": "k", "n": 5}, PSYCOPG)
        cursor = await connection.execute(sql, values)
        assert await cursor.fetchone() == (True, "50%", 5)
