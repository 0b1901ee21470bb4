"""What is asked of a result."""

import dataclasses
import sqlite3
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from transept.errors import MultipleResultsFoundError, NotFoundError, UsageError
from transept.sql.result import Result

KEY = UUID("0190d2a4-7b7e-7a3c-8c55-0d2f1f3a9b11")


@dataclasses.dataclass
class User:
    id: int
    key: UUID


def select(sql: str, *parameters: Any) -> Result:
    with sqlite3.connect(":memory:") as connection:
        cursor = connection.execute(sql, parameters)
        result = Result(tuple(column[0] for column in cursor.description), cursor.fetchall(), cursor.rowcount)
    connection.close()
    return result


def users(count: int) -> Result:
    return select(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i AS id, ? AS key FROM n LIMIT ?",
        str(KEY),
        count,
    )


def test_all_are_dicts_or_instances() -> None:
    result = users(2)

    assert result.all() == [{"id": 1, "key": str(KEY)}, {"id": 2, "key": str(KEY)}]
    assert result.all(schema_type=User) == [User(1, KEY), User(2, KEY)]


def test_a_result_is_iterated_as_dicts_again_and_again() -> None:
    result = users(2)

    assert list(result) == list(result) == result.all()
    assert len(result) == 2


def test_the_first_of_several_is_got() -> None:
    assert users(2).get_first() == {"id": 1, "key": str(KEY)}
    assert users(2).get_first(schema_type=User) == User(1, KEY)


def test_the_first_of_none_is_none() -> None:
    assert users(0).get_first() is None
    assert users(0).get_first(schema_type=User) is None


def test_one_row_is_the_only_one() -> None:
    assert users(1).one() == {"id": 1, "key": str(KEY)}
    assert users(1).one(schema_type=User) == User(1, KEY)
    assert users(1).one_or_none(schema_type=User) == User(1, KEY)


@pytest.mark.parametrize("ask", [Result.one, Result.scalar])
def test_no_row_where_one_was_expected_is_not_found(ask: Any) -> None:
    with pytest.raises(NotFoundError, match="no row was found where one was expected"):
        ask(users(0))


@pytest.mark.parametrize("ask", [Result.one, Result.one_or_none, Result.scalar, Result.scalar_or_none])
def test_several_rows_where_one_was_expected_are_counted(ask: Any) -> None:
    with pytest.raises(MultipleResultsFoundError, match="3 rows were found where one was expected"):
        ask(users(3))


@pytest.mark.parametrize("ask", [Result.one_or_none, Result.scalar_or_none])
def test_no_row_where_there_may_be_none_is_none(ask: Any) -> None:
    assert ask(users(0)) is None


def test_a_scalar_is_the_first_column() -> None:
    assert users(1).scalar() == 1
    assert users(1).scalar_or_none() == 1


@pytest.mark.parametrize(
    ("value", "value_type", "expected"),
    [(str(KEY), UUID, KEY), (3, int, 3), ("3", int, 3), (3, float, 3.0), (1, bool, True), ('{"a":1}', dict, {"a": 1})],
)
def test_a_scalar_becomes_the_type_that_was_asked_for(value: Any, value_type: Any, expected: Any) -> None:
    scalar = select("SELECT ?", value).scalar(value_type=value_type)

    assert scalar == expected
    assert type(scalar) is value_type


def test_a_decimal_that_is_whole_becomes_the_int_that_was_asked_for() -> None:
    assert Result(("sum",), [(Decimal("12"),)], 1).scalar(value_type=int) == 12
    with pytest.raises(UsageError, match=r"the scalar: Decimal\('1.5'\) cannot become int"):
        Result(("sum",), [(Decimal("1.5"),)], 1).scalar(value_type=int)


def test_a_scalar_of_another_type_is_refused() -> None:
    with pytest.raises(UsageError, match="the scalar: 'ada' cannot become int"):
        select("SELECT 'ada'").scalar(value_type=int)


def test_null_is_none_whatever_type_was_asked_for() -> None:
    assert select("SELECT NULL").scalar(value_type=UUID) is None


def test_a_driver_may_leave_an_empty_result_without_columns() -> None:
    assert Result((), [], 0).all(schema_type=User) == []
    assert Result((), [], 0).get_first(schema_type=User) is None


def test_an_empty_result_still_has_to_have_the_columns() -> None:
    with pytest.raises(UsageError, match="User needs 'key'"):
        select("SELECT 1 AS id WHERE false").all(schema_type=User)


def test_a_result_says_what_it_holds() -> None:
    assert repr(users(2)) == "<Result of 2 rows: id, key; -1 affected>"
    assert repr(Result((), [], 3, 7)) == "<Result of 0 rows; 3 affected>"
