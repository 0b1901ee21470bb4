"""The rows of a query without its limit: as many as the database gives without it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from servers.server import Server

from transept.sql.paging import without_limit
from transept.sql.statement import Notation, render

SQLITE = Notation("sqlite", own="qmark", out="qmark")
MYSQL = Notation("mysql", own="format", out="format")
POSTGRES = Notation("postgresql", own="numeric", out="numeric")
PSYCOPG = Notation("postgresql", own="format", out="format")


@pytest.mark.parametrize(
    ("tail", "rest"),
    [
        (" LIMIT 5", " "),
        (" limit 5 offset 10;", " "),
        (" OFFSET 5 LIMIT 3 -- the page\n", " "),
        (" ORDER BY x OFFSET 5 ROWS FETCH NEXT 3 ROWS WITH TIES", " ORDER BY x "),
        (" FOR UPDATE OF t SKIP LOCKED LIMIT 1", " "),
        (" LIMIT 1 FOR NO KEY UPDATE", " "),
        ("/* LIMIT 1 */ LIMIT (SELECT 2)", "/* LIMIT 1 */ "),
    ],
)
def test_a_limit_goes_with_what_stands_behind_it_and_with_locks(tail: str, rest: str) -> None:
    assert without_limit("SELECT * FROM t" + tail, (), POSTGRES) == ("SELECT * FROM t" + rest, ())


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM t",
        "SELECT * FROM t FOR UPDATE",
        "SELECT * FROM (SELECT * FROM t LIMIT 5) AS page",
        "WITH page AS (SELECT * FROM t LIMIT 5) SELECT * FROM page",
        "SELECT 'LIMIT 5' FROM t",
        'SELECT "limit" FROM t',
        "SELECT x AS limit, t.offset FROM t",
        "SELECT substring(x FROM 1 FOR 3) FROM t",
        "INSERT INTO t SELECT * FROM t LIMIT 5",
        "UPDATE t SET x = 1",
        "(SELECT 1 LIMIT 1) UNION (SELECT 2 LIMIT 1)",
    ],
)
def test_what_has_no_limit_of_its_own_is_not_counted(sql: str) -> None:
    assert without_limit(sql, (), POSTGRES) is None


def test_a_query_in_parentheses_has_the_limit_that_stands_in_them() -> None:
    assert without_limit(" ((SELECT 1 LIMIT 1)); ", (), POSTGRES) == ("SELECT 1 ", ())


def test_a_column_named_offset_is_no_limit_where_it_may_have_that_name() -> None:
    assert without_limit("SELECT offset FROM t ORDER BY offset", (), MYSQL) is None
    assert without_limit("SELECT offset FROM t ORDER BY offset LIMIT 5, 10", (), MYSQL) == (
        "SELECT offset FROM t ORDER BY offset ",
        (),
    )
    assert without_limit("SELECT fetch, offset FROM t LIMIT 1", (), SQLITE) == ("SELECT fetch, offset FROM t ", ())


def test_an_offset_without_a_limit_is_one_in_mariadb() -> None:
    assert without_limit("SELECT x FROM t OFFSET %s ROWS FETCH NEXT 2 ROWS ONLY", (1,), MYSQL) == (
        "SELECT x FROM t ",
        (),
    )


def test_arguments_by_position_stay_if_their_placeholders_do() -> None:
    sql = "SELECT * FROM t WHERE a = ? AND b IN (?) LIMIT ? OFFSET ?"
    assert without_limit(sql, (1, [2, 3], 10, 20), SQLITE) == (
        "SELECT * FROM t WHERE a = ? AND b IN (?) ",
        [1, [2, 3]],
    )


def test_numbered_arguments_are_numbered_anew() -> None:
    sql = "SELECT * FROM t WHERE a = $3 AND b = $2 OR a = $3 LIMIT $1"
    assert without_limit(sql, ("limit", "b", "a"), POSTGRES) == (
        "SELECT * FROM t WHERE a = $2 AND b = $1 OR a = $2 ",
        ["b", "a"],
    )


def test_named_arguments_stay_if_their_names_are_still_used() -> None:
    sql = "SELECT * FROM t WHERE a = :a LIMIT :size OFFSET :a"
    assert without_limit(sql, {"a": 1, "size": 2}, PSYCOPG) == ("SELECT * FROM t WHERE a = :a ", {"a": 1})


def test_a_text_that_has_no_placeholder_left_has_no_doubled_signs_left() -> None:
    assert without_limit("SELECT 7 %% 5 LIMIT %s", (1,), PSYCOPG) == ("SELECT 7 % 5 ", ())
    assert without_limit("SELECT x ?? 'a' FROM t LIMIT ?", (1,), POSTGRES) == ("SELECT x ? 'a' FROM t ", ())
    assert without_limit("SELECT 7 % 5 LIMIT 1", (), PSYCOPG) == ("SELECT 7 % 5 ", ())


# -- the property

queries = st.sampled_from(
    [
        "SELECT x FROM numbers WHERE x > {a} ORDER BY x",
        "SELECT x, x + {a} AS y FROM numbers WHERE x IN (1, 2, {b})",
        "SELECT DISTINCT x % 3 AS z FROM numbers WHERE x <> {a}",
        "WITH few AS (SELECT x FROM numbers ORDER BY x LIMIT {b}) SELECT x FROM few WHERE x <> {a}",
        "SELECT x FROM numbers WHERE x < {a} UNION ALL SELECT x FROM numbers WHERE x = {b} ORDER BY 1",
        "SELECT ' LIMIT 1 ' AS s FROM numbers WHERE x >= {a} -- LIMIT 2\n",
        "SELECT max(x) AS m FROM numbers GROUP BY x % 4 HAVING count(*) > {a}",
    ]
)
limits = {
    "sqlite": ["LIMIT {n}", "LIMIT {n} OFFSET {m}", "limit {m}, {n}", "LIMIT {n} -- end"],
    "postgresql": [
        "LIMIT {n}",
        "LIMIT {n} OFFSET {m}",
        "OFFSET {m} LIMIT {n}",
        "OFFSET {m}",
        "OFFSET {m} ROWS FETCH FIRST {n} ROWS ONLY;",
    ],
}
values = st.fixed_dictionaries({name: st.integers(0, 12) for name in "abnm"})


def written(template: str, given_values: dict[str, int], style: str) -> tuple[str, Any]:
    """The statement in this style, with its arguments."""
    order = sorted(
        (name for name in given_values if f"{{{name}}}" in template), key=lambda name: template.find(f"{{{name}}}")
    )
    used = {name: given_values[name] for name in order}
    if style == "named":
        return template.format(**{name: f":{name}" for name in used}), used
    if style == "numeric":  # the last one first, so that what is left has gaps
        order.reverse()
        marks = {name: f"${number}" for number, name in enumerate(order, 1)}
        return template.format(**marks), tuple(used[name] for name in order)
    return template.format(**dict.fromkeys(used, "?")), tuple(used.values())


@pytest.fixture(scope="module")
def lite() -> Iterator[Any]:
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute(
            "CREATE TABLE numbers AS WITH RECURSIVE n (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT 10) "
            "SELECT x FROM n"
        )
        yield connection


@pytest.fixture(scope="module")
def pg_numbers(postgres: Server) -> Iterator[Any]:
    with psycopg.connect(postgres.dsn, autocommit=True) as connection:
        connection.execute("CREATE TEMP TABLE numbers AS SELECT * FROM generate_series(1, 10) AS x")
        yield connection


def counted(connection: Any, notation: Notation, query: tuple[str, Any], limited: tuple[str, Any]) -> None:
    rest = without_limit(*limited, notation)
    assert rest is not None
    text, arguments = render(f"SELECT count(*) FROM ({rest[0]}) AS transept_counted", rest[1], notation)
    (count,) = connection.execute(text, arguments or ()).fetchone()
    text, arguments = render(*query, notation)
    assert count == len(connection.execute(text, arguments or ()).fetchall())


@given(
    query=queries,
    limit=st.sampled_from(limits["sqlite"]),
    numbers=values,
    style=st.sampled_from(["?", "named", "numeric"]),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_count_is_the_number_of_rows_without_the_limit_on_sqlite(
    lite: Any, query: str, limit: str, numbers: dict[str, int], style: str
) -> None:
    counted(lite, SQLITE, written(query, numbers, style), written(f"{query} {limit}", numbers, style))


@given(
    query=queries,
    limit=st.sampled_from(limits["postgresql"]),
    numbers=values,
    style=st.sampled_from(["named", "?", "numeric"]),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_count_is_the_number_of_rows_without_the_limit_on_postgresql(
    pg_numbers: Any, query: str, limit: str, numbers: dict[str, int], style: str
) -> None:
    counted(pg_numbers, PSYCOPG, written(query, numbers, style), written(f"{query} {limit}", numbers, style))
