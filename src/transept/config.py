"""What users write: settings of engines and sessions, checked when they are written.

Nothing here imports SQLAlchemy or a driver. A setting that was not given is `Empty` and is not passed on.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Literal, ParamSpec, TypedDict, TypeVar, dataclass_transform

from transept.errors import ImproperConfigurationError, UsageError, unknown_option
from transept.policy import CommitMode, Policy

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Engine
    from sqlalchemy.engine.interfaces import IsolationLevel
    from sqlalchemy.engine.url import URL
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
    from sqlalchemy.orm import Query, Session
    from sqlalchemy.pool import Pool

__all__ = [
    "AsyncSessionConfig",
    "DatabaseSettings",
    "Empty",
    "EmptyType",
    "EngineConfig",
    "FastAPIConfig",
    "FlaskConfig",
    "LitestarConfig",
    "StarletteConfig",
    "SyncSessionConfig",
    "checked",
    "configuration",
    "given",
    "options_checked",
    "strict",
]

C = TypeVar("C")
P = ParamSpec("P")


class EmptyType(Enum):
    """The type of `Empty`."""

    EMPTY = 0

    def __repr__(self) -> str:
        return "Empty"


Empty: Final = EmptyType.EMPTY
"""A setting that was not given."""


@dataclass_transform(kw_only_default=True, eq_default=False, field_specifiers=(dataclasses.field,))
def configuration(cls: type[C]) -> type[C]:
    """A dataclass of keywords whose unknown ones are refused with the nearest known one; equal only to itself."""
    made = dataclasses.dataclass(kw_only=True, eq=False, repr=False)(cls)
    init: Callable[..., None] = made.__init__
    setattr(made, "__init__", strict(init))  # noqa: B010 - an assignment would be refused by one type checker of two
    return made


def strict(init: Callable[P, None]) -> Callable[P, None]:
    """An `__init__` that refuses unknown keywords with the nearest known one."""
    known = [name for name in inspect.signature(init).parameters if name != "self"]

    @functools.wraps(init)
    def __init__(*arguments: P.args, **options: P.kwargs) -> None:  # noqa: N807
        for option in options:
            if option not in known:
                raise unknown_option(type(arguments[0]).__name__, option, known)
        init(*arguments, **options)

    return __init__


def given(config: Any) -> dict[str, Any]:
    """The settings of a configuration that were given, by name."""
    values = ((one.name, getattr(config, one.name)) for one in dataclasses.fields(config))
    return {name: value for name, value in values if value is not Empty}


@configuration
class EngineConfig:
    """The keywords of `sqlalchemy.create_engine`, and `url`; see SQLAlchemy's documentation for what each does.

    https://docs.sqlalchemy.org/en/20/core/engines.html#sqlalchemy.create_engine
    """

    url: str | URL | EmptyType = Empty
    connect_args: dict[str, Any] | EmptyType = Empty
    creator: Callable[..., Any] | EmptyType = Empty
    async_creator: Callable[..., Any] | EmptyType = Empty
    echo: bool | Literal["debug"] | EmptyType = Empty
    echo_pool: bool | Literal["debug"] | EmptyType = Empty
    enable_from_linting: bool | EmptyType = Empty
    execution_options: Mapping[str, Any] | EmptyType = Empty
    future: Literal[True] | EmptyType = Empty
    hide_parameters: bool | EmptyType = Empty
    implicit_returning: Literal[True] | EmptyType = Empty
    insertmanyvalues_page_size: int | EmptyType = Empty
    isolation_level: IsolationLevel | EmptyType = Empty
    json_deserializer: Callable[[str], Any] | EmptyType = Empty
    json_serializer: Callable[[Any], str] | EmptyType = Empty
    label_length: int | EmptyType | None = Empty
    logging_name: str | EmptyType = Empty
    max_identifier_length: int | EmptyType | None = Empty
    max_overflow: int | EmptyType = Empty
    module: Any = Empty
    paramstyle: Literal["qmark", "numeric", "named", "format", "pyformat"] | EmptyType | None = Empty
    plugins: Sequence[str] | EmptyType = Empty
    pool: Pool | EmptyType | None = Empty
    pool_logging_name: str | EmptyType = Empty
    pool_pre_ping: bool | EmptyType = Empty
    pool_recycle: int | EmptyType = Empty
    pool_reset_on_return: Literal["rollback", "commit"] | bool | EmptyType | None = Empty
    pool_size: int | EmptyType = Empty
    pool_timeout: float | EmptyType = Empty
    pool_use_lifo: bool | EmptyType = Empty
    poolclass: type[Pool] | EmptyType | None = Empty
    query_cache_size: int | EmptyType = Empty
    skip_autocommit_rollback: bool | EmptyType = Empty
    use_insertmanyvalues: bool | EmptyType = Empty

    def engine_options(self) -> dict[str, Any]:
        """The keywords for `create_engine`, without the URL."""
        options = given(self)
        options.pop("url", None)
        return options


@configuration
class SyncSessionConfig:
    """The keywords of `sqlalchemy.orm.sessionmaker`.

    https://docs.sqlalchemy.org/en/20/orm/session_api.html#sqlalchemy.orm.Session.params
    """

    autobegin: bool | EmptyType = Empty
    autoflush: bool | EmptyType = Empty
    bind: Engine | Connection | AsyncEngine | AsyncConnection | EmptyType | None = Empty
    binds: dict[Any, Any] | EmptyType | None = Empty
    class_: type[Any] | EmptyType = Empty
    close_resets_only: bool | EmptyType = Empty
    enable_baked_queries: bool | EmptyType = Empty
    execution_options: Mapping[str, Any] | EmptyType = Empty
    expire_on_commit: bool | EmptyType = Empty
    info: dict[Any, Any] | EmptyType | None = Empty
    join_transaction_mode: (
        Literal["conditional_savepoint", "rollback_only", "control_fully", "create_savepoint"] | EmptyType
    ) = Empty
    query_cls: type[Query[Any]] | EmptyType | None = Empty
    twophase: bool | EmptyType = Empty


@configuration
class AsyncSessionConfig(SyncSessionConfig):
    """The keywords of `sqlalchemy.ext.asyncio.async_sessionmaker`: as `SyncSessionConfig`, and `sync_session_class`."""

    sync_session_class: type[Session] | EmptyType = Empty


class StarletteConfig(TypedDict, total=False):
    """What ``extension_config["starlette"]`` may have; see `DriverSettings`."""

    commit_mode: CommitMode
    session_key: str
    connection_key: str
    pool_key: str
    extra_commit_statuses: Collection[int] | None
    extra_rollback_statuses: Collection[int] | None
    disable_di: bool


class FastAPIConfig(StarletteConfig, total=False):
    """What ``extension_config["fastapi"]`` may have."""


class FlaskConfig(StarletteConfig, total=False):
    """What ``extension_config["flask"]`` may have."""


class LitestarConfig(StarletteConfig, total=False):
    """What ``extension_config["litestar"]`` may have."""


@configuration
class DatabaseSettings:
    """What every database has: its name, the name of its session, and which responses commit."""

    bind_key: str = "default"
    session_key: str = ""
    commit_mode: CommitMode = "manual"
    extra_commit_statuses: Collection[int] | None = None
    extra_rollback_statuses: Collection[int] | None = None
    keep_transaction_for_body: bool = False

    def __post_init__(self) -> None:
        owner = type(self).__name__
        self.bind_key = "default" if self.bind_key is None else text_setting(owner, "bind_key", self.bind_key)
        keys = ("session_key", "connection_key", "pool_key")
        self._given_keys: dict[str, str] = {key: getattr(self, key, "") for key in keys}
        self._derive_keys()
        checked("keep_transaction_for_body", self.keep_transaction_for_body, bool, owner)
        try:
            self.policy = Policy.of(self.commit_mode, self.extra_commit_statuses, self.extra_rollback_statuses)
        except ImproperConfigurationError as error:
            raise ImproperConfigurationError(f"{owner}: {error}") from error
        self._source: Callable[[Any], Any] | None = None

    def __repr__(self) -> str:
        """Without what may hold a password."""
        return f"<{type(self).__name__} {self.bind_key!r}>"

    @property
    def key(self) -> str:
        return self.bind_key

    def rename(self, bind_key: str) -> None:
        """Give it another name, and the keys that follow from it; before anything uses it."""
        self.bind_key = text_setting(type(self).__name__, "bind_key", bind_key)
        self._derive_keys()

    def _derive_keys(self) -> None:
        """The keys that were not given follow from the name."""
        default_key = "db_session" if self.bind_key == "default" else f"{self.bind_key}_session"
        self.session_key = text_setting(
            type(self).__name__, "session_key", self._given_keys["session_key"] or default_key
        )

    @contextmanager
    def use(self, source: Callable[[Any], Any]) -> Iterator[None]:
        """Sessions that units open in this block get their connections from `source`; see `transept.database.Sourced`.

        Raises:
            UsageError: another such block is open.
        """
        if self._source is not None:
            raise UsageError(f"database {self.key!r} gets its connections from {self._source!r} already.")
        self._source = source
        try:
            yield
        finally:
            self._source = None

    def _route(self, hooks: Any) -> Any:
        """What the source has for a unit that opens a session; None where there is no source."""
        return None if self._source is None else self._source(hooks)


def checked(setting: str, value: object, kind: type, owner: str, *, optional: bool = False) -> None:
    """Refuse a value of another type.

    Raises:
        ImproperConfigurationError: it is one.
    """
    if not isinstance(value, kind) and not (optional and value is None):
        article = "an" if kind.__name__[0] in "AEIOUaeiou" else "a"
        raise ImproperConfigurationError(f"{owner}: {setting}={value!r}: {article} {kind.__name__} is needed.")


def options_checked(owner: str, setting: str, options: Mapping[str, Any], known: Collection[str]) -> None:
    """Refuse an option that a driver does not know, with the nearest that it does.

    Raises:
        ImproperConfigurationError: there is one.
    """
    checked(setting, options, Mapping, owner)
    for option in options:
        checked(f"{setting} key", option, str, owner)
        if option not in known:
            raise unknown_option(f"{owner}: {setting}", option, known)


EXAMPLES = {
    "bind_key": "default",
    "session_key": "db_session",
    "connection_key": "db_connection",
    "pool_key": "db_pool",
    "engine_dependency_key": "db_engine",
    "session_dependency_key": "db_session",
    "engine_app_state_key": "db_engine",
    "session_maker_app_state_key": "session_maker_class",
    "session_scope_key": "_sqlalchemy_db_session",
}


def text_setting(owner: str, setting: str, value: object) -> str:
    """`value`, if it is a text that can name something."""
    if not isinstance(value, str) or not value.strip():
        raise ImproperConfigurationError(
            f"{owner}: {setting}={value!r}: a name is needed, such as {EXAMPLES[setting]!r}."
        )
    return value
