"""What a database is to the core: the protocol that every family fulfils, and how one is found by name.

A *database* opens a *handle* for a unit of work. The handle owns one session, and through it at most one transaction
at a time. A connection belongs to the transaction: it is taken by the first statement and given back by the
`commit`, `rollback` or `invalidate` that ends it, so a handle between transactions holds nothing.

The awaitable methods of a *blocking* database never suspend: they block, and the host of the unit decides in which
thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from difflib import get_close_matches
from typing import Any, ClassVar, Protocol, TypeGuard, TypeVar, runtime_checkable

from transept._portal import Bridge
from transept.errors import ImproperConfigurationError
from transept.policy import Policy

__all__ = [
    "Adopts",
    "Bridged",
    "Connects",
    "Database",
    "Databases",
    "Gives",
    "Handle",
    "HasConnection",
    "Pooled",
    "Prepares",
    "Savepoints",
    "Sourced",
    "refuse_class",
]

S_co = TypeVar("S_co", covariant=True)


class Handle(Protocol):
    """One database's part in one unit of work."""

    @property
    def session(self) -> Any:
        """The session, the same object for the life of the handle."""
        ...

    def in_transaction(self) -> bool:
        """Whether a transaction is open, or a statement under way may open one. No I/O."""
        ...

    def reading(self) -> bool:
        """Whether a result is still being read from the connection. No I/O."""
        ...

    def wrote(self) -> bool:
        """Whether the open transaction seems to have changed something. For warnings only. No I/O."""
        ...

    def app_ended(self) -> bool | None:
        """How the app itself ended its last transaction: committed or not; None if it ended none. No I/O."""
        ...

    def hold_now(self) -> bool:
        """Take the session's turn, so that statements of the app wait until `release`; False if one is under way."""
        ...

    async def hold(self) -> None:
        """As `hold_now`, after waiting for the statement under way."""
        ...

    def release(self) -> None:
        """Give the turn back."""
        ...

    async def check(self) -> None:
        """Flush, and raise what would make the commit fail, `CommitFailed` if the transaction is gone."""
        ...

    async def commit(self) -> None:
        """Commit. Raises the error of the database, or `CommitInDoubt` if its answer never came."""
        ...

    async def rollback(self) -> None:
        """Roll back. Never hangs on a dead connection; what it raises leaves the connection in doubt."""
        ...

    async def invalidate(self) -> None:
        """Drop a connection in doubt instead of giving it back, and forget the transaction."""
        ...

    def forget(self) -> None:
        """Let go of what the session has read. Nothing is open; no I/O."""
        ...

    def end(self, owner: str) -> None:
        """The unit is over: every use of the session that begins after this is `OutsideScope`. No I/O."""
        ...


@runtime_checkable
class Savepoints(Protocol):
    """The capability of a handle whose transaction can be undone in part."""

    async def savepoint(self) -> Any:
        """Set a savepoint in the open transaction and return what names it."""
        ...

    async def rollback_to(self, savepoint: Any) -> None:
        """Undo everything since the savepoint."""
        ...

    async def release_savepoint(self, savepoint: Any) -> None:
        """Keep what came since the savepoint as a part of the transaction."""
        ...


class Database(Protocol):
    """One configured database."""

    @property
    def key(self) -> str:
        """Its name, the `bind_key`."""
        ...

    @property
    def session_key(self) -> str:
        """The name of its session on the request's state."""
        ...

    @property
    def policy(self) -> Policy:
        """Which responses commit."""
        ...

    blocking: ClassVar[bool]
    """The colour of its handles and of `start` and `stop`."""

    @property
    def keep_transaction_for_body(self) -> bool:
        """Whether a cursor that is open when the response starts keeps its transaction for the body."""
        ...

    def open(self, hooks: Any, reads_only: bool) -> Handle:
        """A new handle. Does no I/O. `hooks` is told of the app's own savepoints; see `transept.unit.Hooks`."""
        ...

    async def start(self) -> None:
        """Get ready: what start-up is asked to do. May be called again; does nothing then."""
        ...

    async def stop(self) -> None:
        """Close what was opened here. Never touches what the user handed in. May be called again."""
        ...


class Prepares(Database, Protocol):
    """The capability of a database that may have something to await before a session is made."""

    @property
    def prepares(self) -> bool:
        """Whether it has."""
        ...

    async def prepare(self) -> None:
        """Await it."""
        ...


@runtime_checkable
class Adopts(Protocol):
    """The capability of a database that takes sessions in which the app has made, and gives them up again."""

    def adopt(self, session: Any, hooks: Any, reads_only: bool) -> Handle:
        """A handle over this session."""
        ...

    def give_up(self, handle: Any) -> Any:
        """The session of a handle that `adopt` or `open` made, as it was before."""
        ...


@runtime_checkable
class Sourced(Protocol):
    """The capability of a database whose connections may come from elsewhere than its pool. For tests."""

    def use(self, source: Any) -> AbstractContextManager[None]:
        """Sessions that units open while the block lasts get their connections from `source`.

        It is called with the unit's `hooks` for each session, and returns what that family of databases asks for a
        connection: over SQLAlchemy, a function that takes an `Engine` and returns the one to connect with instead; of
        a raw driver, a `transept.sql.link.Linker`. Sessions that are open already keep what they have.
        """
        ...


def must_prepare(database: object) -> TypeGuard[Prepares]:
    """Whether this database has something to await before a session of it is made."""
    return bool(getattr(database, "prepares", False))


@runtime_checkable
class Pooled(Protocol):
    """The capability of a database that has a pool of its driver, which apps find on their state under `pool_key`."""

    @property
    def pool_key(self) -> str: ...

    def when_pooled(self, listener: Callable[[Any], None]) -> None:
        """Call `listener(pool)` whenever the pool is made: at start-up, or at first use."""
        ...


@runtime_checkable
class HasConnection(Protocol):
    """The capability of a handle that gives the driver's connection, as a part of the unit of work."""

    @property
    def connection(self) -> Any: ...


@runtime_checkable
class Bridged(Protocol):
    """The capability of an async handle whose session plain code can use, too."""

    def for_plain_code(self, bridge: Bridge) -> HasSession[Any]:
        """The blocking twin of its session, and of its connection if it has one, the same each time. No I/O."""
        ...


class HasTypedConnection(Protocol[S_co]):
    """A handle, for type checkers: what its connection is."""

    @property
    def connection(self) -> S_co: ...


class Connects(Protocol[S_co]):
    """A raw database, for type checkers: what kind of connection it gives."""

    def open(self, hooks: Any, reads_only: bool) -> HasTypedConnection[S_co]: ...


class HasSession(Protocol[S_co]):
    """A handle, for type checkers: what its session is."""

    @property
    def session(self) -> S_co: ...


class Gives(Protocol[S_co]):
    """A database, for type checkers: what kind of session it gives."""

    def open(self, hooks: Any, reads_only: bool) -> HasSession[S_co]: ...


Give = Callable[[Any], Any]


def state_keys(database: Database) -> dict[str, str]:
    """The names that a database has on the state of requests and of the app, by setting."""
    settings = ("session_key", "connection_key", "pool_key")
    return {setting: getattr(database, setting) for setting in settings if getattr(database, setting, "")}


def refuse_class(setting: str, database: object) -> None:
    """Raises ImproperConfigurationError: it is a class, and not an object of it."""
    if isinstance(database, type):
        raise ImproperConfigurationError(
            f"{setting}: {database.__name__} is the class: pass an object, {database.__name__}(...)."
        )


class Databases:
    """Databases by name, in the order they were added.

    Args:
        databases: those to begin with.
        first_is_default: whether asking without a key means the first one added, when there are several. Otherwise it
            means the one named ``"default"``.
    """

    def __init__(self, databases: Iterable[Database] = (), *, first_is_default: bool = True) -> None:
        self._first_is_default = first_is_default
        self._by_key: dict[str, Database] = {}
        self._by_session_key: dict[str, Database] = {}
        self._by_state_key: dict[str, tuple[str, Database]] = {}
        self._on_state: dict[str, Give] = {}
        for database in databases:
            self.add(database)

    @classmethod
    def of(cls, databases: Databases | Database | Iterable[Database], setting: str = "config") -> Databases:
        """A registry of one database or several; several without a key mean the one named ``"default"``.

        `setting` is what the caller calls them.

        Raises:
            ImproperConfigurationError: no database at all, or something that is none.
        """
        if isinstance(databases, Databases):
            return databases
        given: Any = databases
        one_by_one = isinstance(given, Iterable) and not isinstance(given, str)
        several: list[Any] = list(given) if one_by_one else [given]
        if not several:
            raise ImproperConfigurationError(f"{setting}=[]: at least one database configuration is needed.")
        for one in several:
            refuse_class(setting, one)
            if not isinstance(getattr(one, "policy", None), Policy):
                raise ImproperConfigurationError(
                    f"{setting} has {one!r}, which is no database: pass objects such as SQLAlchemyAsyncConfig(...)."
                )
        return cls(several, first_is_default=False)

    def copy(self) -> Databases:
        """The same databases, to which others can be added."""
        return Databases(self, first_is_default=self._first_is_default)

    def add(self, database: Database) -> None:
        """Add one database; the same object again is nothing new.

        Raises:
            ImproperConfigurationError: its key, or its session key, is taken.
        """
        if self._by_key.get(database.key) is database:
            return
        if database.key in self._by_key:
            raise ImproperConfigurationError(
                f"Please ensure that each config has a unique name for the `bind_key` attribute: two have "
                f"{database.key!r}."
            )
        for word, other in ((database.key, self._by_session_key), (database.session_key, self._by_key)):
            if word in other:
                raise ImproperConfigurationError(
                    f"{word!r} would mean two databases, {other[word].key!r} and {database.key!r}: give one of them "
                    "another bind_key or session_key."
                )
        keys = state_keys(database)
        for setting, key in keys.items():
            if key in self._by_state_key:
                others, rival = self._by_state_key[key]
                raise ImproperConfigurationError(
                    f"Duplicate state keys found: databases {rival.key!r} ({others}) and {database.key!r} ({setting}) "
                    f"both have {key!r}. Give one of them another name, or keys of its own."
                )
        self._by_key[database.key] = database
        self._by_session_key[database.session_key] = database
        self._by_state_key.update({key: (setting, database) for setting, key in keys.items()})
        if not getattr(database, "disable_di", False):
            self._on_state[database.session_key] = lambda unit: unit.session(database)
            if "connection_key" in keys:
                self._on_state[keys["connection_key"]] = lambda unit: unit.connection(database)

    def get(self, key: Database | str | None = None) -> Database:
        """The database that a bind key or a session key names, or this one; without a key, the default.

        Raises:
            ImproperConfigurationError: it is not here.
        """
        if key is None:
            return self._default()
        if not isinstance(key, str):
            if key in self:
                return key
            raise ImproperConfigurationError(
                f"{type(key).__name__} {getattr(key, 'key', key)!r} is none of these databases: {self._names()}. Pass "
                "one of them, its bind_key or its session_key."
            )
        database = self._by_key.get(key) or self._by_session_key.get(key)
        if database is None:
            near = get_close_matches(key, [*self._by_key, *self._by_session_key], n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ImproperConfigurationError(
                f"No configuration found for key {key!r}.{hint} There is: {self._names()}."
            )
        return database

    def place(self, database: Database) -> int:
        """Which one it is, in the order they were added; one that is not here comes after all."""
        return next((place for place, one in enumerate(self._by_key.values()) if one is database), len(self._by_key))

    def _default(self) -> Database:
        if not self._by_key:
            raise ImproperConfigurationError("this registry has no database yet: call add_config(...) first.")
        if len(self._by_key) == 1 or self._first_is_default:
            return next(iter(self._by_key.values()))
        if "default" in self._by_key:
            return self._by_key["default"]
        raise ImproperConfigurationError(f"No database is called 'default', so a key is needed: {self._names()}.")

    def _names(self) -> str:
        return ", ".join(map(repr, self._by_key)) or "no database at all"

    def on_state(self) -> dict[str, Give]:
        """What lies on a request's state, by name: how it is had from the request's unit of work. Not a copy."""
        return self._on_state

    def __iter__(self) -> Iterator[Database]:
        return iter(self._by_key.values())

    def __len__(self) -> int:
        return len(self._by_key)

    def __contains__(self, database: object) -> bool:
        return any(database is one for one in self._by_key.values())
