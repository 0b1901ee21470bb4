"""What one statement returned: its rows, read to the end, and how many it touched."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, TypeVar, overload

from transept.errors import MultipleResultsFoundError, NotFoundError
from transept.sql.rows import converter, maker

__all__ = ["KeptCursor", "Result"]

T = TypeVar("T")

Row = Sequence[Any]


class Result:
    """The result of a statement. It holds no connection and stays usable when its transaction is over.

    ``column_names`` and ``rows`` are as the driver gave them, ``rows_affected`` is -1 if the driver does not tell, and
    ``last_inserted_id`` None where the database has none. A row is a dict, or an instance of ``schema_type``: a
    dataclass, a msgspec.Struct, a pydantic model, an attrs class, a TypedDict, a NamedTuple class or dict. `UsageError`
    if the columns or a value do not fit it.
    """

    __slots__ = ("_columns", "_natives", "last_inserted_id", "rows", "rows_affected")

    def __init__(
        self,
        columns: Sequence[Any],
        rows: Sequence[Row],
        rows_affected: int,
        last_inserted_id: int | None = None,
        natives: frozenset[type] = frozenset(),
    ) -> None:
        self._columns = columns  # their names, or a driver's descriptions of them
        self.rows = rows
        self.rows_affected = rows_affected
        self.last_inserted_id = last_inserted_id
        self._natives = natives

    @property
    def column_names(self) -> tuple[str, ...]:
        """The columns of the rows; none where the statement gives no rows."""
        columns = self._columns
        if columns and type(columns[0]) is not str:
            self._columns = columns = tuple([column[0] for column in columns])
        return tuple(columns)

    @overload
    def all(self, *, schema_type: None = None) -> list[dict[str, Any]]: ...
    @overload
    def all(self, *, schema_type: type[T]) -> list[T]: ...
    def all(self, *, schema_type: Any = None) -> list[Any]:
        """Every row, in a new list."""
        return self._made(self.rows, schema_type)

    @overload
    def get_first(self, *, schema_type: None = None) -> dict[str, Any] | None: ...
    @overload
    def get_first(self, *, schema_type: type[T]) -> T | None: ...
    def get_first(self, *, schema_type: Any = None) -> Any:
        """The first row, None if there is none. For "there is one at most" use `one_or_none`."""
        made = self._made(self.rows[:1], schema_type)
        return made[0] if made else None

    @overload
    def one(self, *, schema_type: None = None) -> dict[str, Any]: ...
    @overload
    def one(self, *, schema_type: type[T]) -> T: ...
    def one(self, *, schema_type: Any = None) -> Any:
        """The only row; `NotFoundError` if there is none, `MultipleResultsFoundError` if there are several."""
        return self._made((self._only(),), schema_type)[0]

    @overload
    def one_or_none(self, *, schema_type: None = None) -> dict[str, Any] | None: ...
    @overload
    def one_or_none(self, *, schema_type: type[T]) -> T | None: ...
    def one_or_none(self, *, schema_type: Any = None) -> Any:
        """The only row, None if there is none; `MultipleResultsFoundError` if there are several."""
        return self.one(schema_type=schema_type) if self.rows else None

    @overload
    def scalar(self, *, value_type: None = None) -> Any: ...
    @overload
    def scalar(self, *, value_type: type[T]) -> T: ...
    def scalar(self, *, value_type: Any = None) -> Any:
        """The first column of the only row, made a ``value_type`` if it is not one; NULL is None whatever the type.

        `NotFoundError` if there is no row, `MultipleResultsFoundError` if there are several.
        """
        value = self._only()[0]
        if value_type is None or type(value) is value_type:
            return value
        fit = _fit(value_type)
        return value if fit is None else fit(value)

    @overload
    def scalar_or_none(self, *, value_type: None = None) -> Any: ...
    @overload
    def scalar_or_none(self, *, value_type: type[T]) -> T | None: ...
    def scalar_or_none(self, *, value_type: Any = None) -> Any:
        """As `scalar`, but None if there is no row."""
        return self.scalar(value_type=value_type) if self.rows else None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.all())

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        columns = f": {', '.join(self.column_names)}" if self.column_names else ""
        return f"<Result of {len(self.rows)} rows{columns}; {self.rows_affected} affected>"

    def _only(self) -> Row:
        if len(self.rows) == 1:
            return self.rows[0]
        if not self.rows:
            raise NotFoundError(
                "no row was found where one was expected: use one_or_none() or scalar_or_none() if there may be none."
            )
        raise MultipleResultsFoundError(
            f"{len(self.rows)} rows were found where one was expected: narrow the statement, or use get_first() "
            "or all()."
        )

    def _made(self, rows: Sequence[Row], schema_type: type[Any] | None) -> list[Any]:
        if not rows and not self.column_names:
            return []  # some drivers name the columns of rows only
        made: list[Any] = maker(self.column_names, schema_type, self._natives)(rows)
        return made


class KeptCursor:
    """A cursor over rows that are in memory, for statements of which the server keeps none."""

    def __init__(self, result: Result) -> None:
        self.column_names = result.column_names
        self._rows = result.rows
        self._next = 0

    async def fetch(self, count: int) -> Sequence[Row]:
        rows = self._rows[self._next : self._next + count]
        self._next += len(rows)
        return rows

    async def close(self) -> None:
        """There is nothing to close."""


@lru_cache(maxsize=1024)
def _fit(value_type: Any) -> Callable[[Any], Any] | None:
    # Nothing is trusted here: SUM of ints is a Decimal, and one value costs little to look at.
    return converter(value_type, frozenset({object}), "the scalar")
