"""PostgreSQL through psycopg 3 and psycopg_pool, in both colours."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec

try:
    import psycopg
    import psycopg_pool
    from psycopg.conninfo import conninfo_to_dict
    from psycopg.pq import Conninfo
    from psycopg.types.json import Jsonb
except ImportError as error:  # psycopg also says how it finds no libpq
    raise ImportError(
        f"transept.adapters.psycopg needs psycopg and psycopg_pool: pip install 'transept[psycopg]' ({error})"
    ) from error

from transept._bridge import run_now
from transept._loops import PerLoop
from transept.adapters._psycopg_link import PsycopgLink
from transept.adapters._psycopg_pool import AWAITED, BLOCKING, Colour, Pool
from transept.config import checked, configuration
from transept.errors import ImproperConfigurationError, unknown_option
from transept.sql.faults import Fault, of_psycopg
from transept.sql.postgres import (
    NATIVES,
    READ_ONLY,
    Savings,
    encode_json,
    pool_sizes,
    port_checked,
    url_without_driver,
)
from transept.sql.settings import AsyncSettings, BlockingSettings, DriverSettings
from transept.sql.statement import Notation
from transept.sql.values import Json, Table

__all__ = ["PsycopgAsyncConfig", "PsycopgSyncConfig"]

OF_POOLS = frozenset(inspect.signature(psycopg_pool.ConnectionPool.__init__).parameters) - {"self", "open"}
OF_CONNECTIONS = frozenset(inspect.signature(psycopg.Connection.connect).parameters) - {"conninfo", "kwargs"}
LIBPQ = {option.keyword.decode(): option.val for option in Conninfo.get_defaults()}
REFUSED_OPTION = re.compile(r'(?:option|parameter:) "(\w+)"')


def _jsonb(value: Any) -> Jsonb:
    return Jsonb(value, encode_json)


def _jsonb_of_marked(marked: Json) -> Jsonb:
    return Jsonb(marked.value, encode_json)


@configuration
class PsycopgSettings(DriverSettings):
    """What both colours have in common."""

    bare_reads: bool = True
    skip_reset: bool = True

    dialect: ClassVar[str] = "postgresql"
    notation: ClassVar[Notation] = Notation("postgresql", own="format", out="numeric")
    natives: ClassVar[frozenset[type]] = NATIVES
    adapts: ClassVar[Table] = Table({dict: _jsonb, msgspec.Struct: _jsonb, Json: _jsonb_of_marked})
    colour: ClassVar[Colour]

    def __post_init__(self) -> None:
        super().__post_init__()
        owner = type(self).__name__
        checked("bare_reads", self.bare_reads, bool, owner)
        checked("skip_reset", self.skip_reset, bool, owner)
        self._arguments = pool_arguments(owner, self.pool_config)
        bare_reads = self.bare_reads and read_only(self._arguments)
        self._savings = Savings(bare_reads=bare_reads, skip_reset=self.skip_reset)
        try:
            self._new_pool().made()
        except (TypeError, ValueError) as error:
            raise ImproperConfigurationError(f"{owner}: pool_config: {error}.") from error

    @classmethod
    def pool_options(cls) -> frozenset[str]:
        return OF_POOLS | OF_CONNECTIONS | LIBPQ.keys() | {"dsn"}

    def fault_of(self, error: BaseException) -> Fault | None:
        return of_psycopg(error)

    async def link(self, holder: str) -> PsycopgLink:
        return await self._own_pool().link(holder)

    async def _warm(self, connections: int) -> None:
        await self._own_pool().warm(eager=self.eager)

    def _new_pool(self) -> Pool:
        return Pool(self, self.colour, savings=self._savings, arguments=self._arguments)

    def _own_pool(self) -> Pool:
        raise NotImplementedError


@configuration
class PsycopgAsyncConfig(AsyncSettings, PsycopgSettings):
    """A PostgreSQL database through async psycopg and its pool; the settings of `DriverSettings`, and two more.

    Args:
        pool_config: the keywords of `psycopg_pool.AsyncConnectionPool` and of `psycopg.AsyncConnection.connect`, such
            as ``{"conninfo": "postgresql://localhost/app", "max_size": 20}`` or ``{"host": "localhost", ...}``; ``dsn``
            is another name of ``conninfo``. ``min_size`` is 0 and ``max_size`` 10 unless they are given. ``configure``
            runs again after each reset of a session.
        bare_reads: run a lone read without BEGIN and COMMIT, where the server proves that it is one. Connections are
            read-only by default for that. Switch it off behind a pooler such as PgBouncer.
        skip_reset: give a connection back without resetting its session, where nothing can have changed it.

    The pool is made at first use, or at start-up, one for each event loop, and closed at shutdown or with its loop.
    """

    driver_connection: ClassVar[type] = psycopg.AsyncConnection
    colour: ClassVar[Colour] = AWAITED

    def __post_init__(self) -> None:
        super().__post_init__()
        self._pools = PerLoop(self._new_pool, Pool.close)

    def _own_pool(self) -> Pool:
        return self._pools.get()

    async def stop(self) -> None:
        await self._pools.close()

    async def provide_pool(self) -> Any:
        """psycopg_pool's pool of the running event loop, to be used as any other."""
        return await self._own_pool().opened()

    async def close_pool(self) -> None:
        """Close it; the next use makes another."""
        await self.stop()


@configuration
class PsycopgSyncConfig(BlockingSettings, PsycopgSettings):
    """A PostgreSQL database through psycopg and its pool, for blocking code; as `PsycopgAsyncConfig`.

    The pool, which has threads of its own, is made at first use, or at start-up, and closed at shutdown.
    """

    driver_connection: ClassVar[type] = psycopg.Connection
    colour: ClassVar[Colour] = BLOCKING

    def __post_init__(self) -> None:
        super().__post_init__()
        self._pool = self._new_pool()

    def _own_pool(self) -> Pool:
        return self._pool

    async def stop(self) -> None:
        self.close_pool()

    def provide_pool(self) -> Any:
        """psycopg_pool's pool, to be used as any other."""
        return run_now(self._pool.opened())

    def close_pool(self) -> None:
        """Close it; the next use makes another."""
        run_now(self._pool.close())


def pool_arguments(owner: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """What the pool's class takes, of a pool_config that has the keywords of connections beside the pool's own."""
    if "dsn" in given and "conninfo" in given:
        raise ImproperConfigurationError(f"{owner}: pool_config: dsn and conninfo are one setting: give one of them.")
    min_size, max_size = pool_sizes(owner, given)
    # A connection that cannot be made is given up, and made when somebody needs it: the database may be back then.
    arguments: dict[str, Any] = {"reconnect_timeout": 0}
    arguments |= {name: value for name, value in given.items() if name in OF_POOLS}
    arguments |= {"min_size": min_size, "max_size": max_size}
    setting = "dsn" if "dsn" in given else "conninfo"
    arguments["conninfo"] = _conninfo(owner, setting, given.get(setting, ""))
    kwargs = given.get("kwargs") or {}
    plain = {name: value for name, value in given.items() if name not in OF_POOLS and name != "dsn"}
    if callable(kwargs):
        if plain:
            raise ImproperConfigurationError(f"{owner}: pool_config: kwargs is a callable, so it has {sorted(plain)}.")
        return arguments
    checked("pool_config['kwargs']", kwargs, Mapping, owner)
    arguments["kwargs"] = {**kwargs, **plain}
    port_checked(owner, arguments["kwargs"].get("port"))
    return arguments


def read_only(arguments: dict[str, Any]) -> bool:
    """Make connections read-only by default; False where that is the app's own choice, or nobody knows its options."""
    conninfo, kwargs = arguments["conninfo"], arguments["kwargs"]
    if callable(conninfo) or callable(kwargs):
        return False
    options = {"options": LIBPQ["options"], **conninfo_to_dict(conninfo), **kwargs}["options"]
    text = options.decode() if isinstance(options, bytes) else options or ""
    if READ_ONLY in text:
        return False
    kwargs["options"] = f"-c {READ_ONLY}=on {text}".rstrip()
    return True


def _conninfo(owner: str, setting: str, conninfo: Any) -> Any:
    """Also with a driver in its scheme, as SQLAlchemy's URLs have it; checked unless it is a callable."""
    if callable(conninfo):
        return conninfo
    text = url_without_driver(owner, setting, conninfo)
    try:
        port_checked(owner, conninfo_to_dict(text).get("port"))
    except psycopg.ProgrammingError as error:
        # what libpq quotes may be the password, so neither that is shown nor the error that says it
        raise _bad_conninfo(f"{owner}: pool_config[{setting!r}]", str(error)) from None
    return text


def _bad_conninfo(setting: str, said: str) -> ImproperConfigurationError:
    refused = REFUSED_OPTION.search(said)
    if refused is not None:
        return unknown_option(setting, refused[1], LIBPQ)
    return ImproperConfigurationError(
        f"{setting} cannot be read (it is not shown, for it may hold a password): a URL is needed, such as "
        "'postgresql://user:password@localhost/app', or libpq's keywords, such as 'host=localhost dbname=app'."
    )
