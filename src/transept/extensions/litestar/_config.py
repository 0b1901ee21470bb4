"""SQLAlchemy databases as Litestar users configure them: with keys for injection, app state and scope."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from inspect import signature
from typing import Any, ClassVar, Literal, TypeVar, cast, get_args

from litestar import Litestar
from litestar.datastructures import State
from litestar.serialization import decode_json, encode_json
from litestar.types import BeforeMessageSendHookHandler, Scope
from sqlalchemy.engine import URL, Engine
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from transept import alchemy
from transept.config import DatabaseSettings, configuration, text_setting
from transept.errors import ImproperConfigurationError, unknown_value
from transept.extensions._base import unit_of_scope
from transept.extensions.litestar._gate import HOW_TO_GATE
from transept.extensions.litestar._handlers import MAKERS, SESSION_SCOPE_KEY, PolicyHandler
from transept.extensions.litestar._injected import refuse_name
from transept.policy import CommitMode, Policy

__all__ = ["LitestarKeys", "SQLAlchemyAsyncConfig", "SQLAlchemySyncConfig"]

CODEC_OF = ("sqlite", "postgresql", "mysql", "mariadb")
ASYNC_NAMES: dict[str, Any] = {"AsyncEngine": AsyncEngine, "AsyncSession": AsyncSession}
SYNC_NAMES: dict[str, Any] = {"Engine": Engine, "Session": Session}

E = TypeVar("E", Engine, AsyncEngine)
Mode = Literal["autocommit", "autocommit_include_redirects", "autocommit_include_redirect"]
BeforeSendHandler = BeforeMessageSendHookHandler | Mode | None
MODES = get_args(Mode)


class Unchosen(str):
    """A key that nobody has chosen: it follows from the bind key, unless that is ``"default"``."""

    __slots__ = ()


FOLLOWS = {
    "engine_dependency_key": "{}_engine",
    "engine_app_state_key": "{}_engine",
    "session_maker_app_state_key": "{}_session_maker_class",
    "session_scope_key": "_sqlalchemy_{}_session",
}


@configuration
class LitestarKeys(DatabaseSettings):
    """What a database has in a Litestar app, besides what it has anywhere.

    Args:
        before_send_handler: ``"autocommit"``, ``"autocommit_include_redirects"``, or what a handler maker returned: as
            `commit_mode`. Any other callable is called with each message and the ASGI scope, before anything is settled
            for that message; it finds the session at ``scope["state"][session_scope_key]``.
        engine_dependency_key, session_dependency_key: the names under which engine and session are injected.
        engine_app_state_key, session_maker_app_state_key: where they lie on ``app.state`` while the app runs.
        session_scope_key: where a `before_send_handler` finds the session.

    With a bind key of its own, a key that was not chosen is named after it: ``x_session``, ``x_engine``, and so on.
    """

    before_send_handler: BeforeSendHandler = None
    engine_dependency_key: str = Unchosen("db_engine")
    session_dependency_key: str = Unchosen("db_session")
    engine_app_state_key: str = Unchosen("db_engine")
    session_maker_app_state_key: str = Unchosen("session_maker_class")
    session_scope_key: str = Unchosen(SESSION_SCOPE_KEY)
    blocking: ClassVar[bool]

    def __post_init__(self) -> None:
        self._chosen = {key for key in FOLLOWS if not isinstance(getattr(self, key), Unchosen)}
        self._take_session_key()
        self._take_handler()
        super().__post_init__()

    def take_policy(self, handler: PolicyHandler) -> None:
        """Settle as this handler says.

        Raises:
            ImproperConfigurationError: it is of the other colour, of another session, or at odds with `commit_mode`.
        """
        owner, said = type(self).__name__, f"before_send_handler={handler!r}"
        if handler.blocking is not self.blocking:
            colour = "a sync one" if handler.blocking else "an async one"
            right = "those without sync_" if handler.blocking else "those that begin with sync_"
            raise ImproperConfigurationError(f"{owner}: {said} is {colour}, which this database is not: use {right}.")
        if handler.session_scope_key not in (self.session_scope_key, SESSION_SCOPE_KEY):
            if "session_scope_key" in self._chosen:
                raise ImproperConfigurationError(
                    f"{owner}: {said} is of another session than session_scope_key={self.session_scope_key!r}: give "
                    "both one key."
                )
            self.session_scope_key = handler.session_scope_key
            self._chosen.add("session_scope_key")
        settings = Policy.of(self.commit_mode, self.extra_commit_statuses, self.extra_rollback_statuses)
        if settings not in (Policy(), handler.policy):
            raise ImproperConfigurationError(
                f"{owner}: {said} and commit_mode={self.commit_mode!r} (with its extra statuses) say different things: "
                "give one of them."
            )
        self.policy = handler.policy
        self.commit_mode = cast("CommitMode", handler.policy.mode)
        self.extra_commit_statuses = handler.policy.extra_commit
        self.extra_rollback_statuses = handler.policy.extra_rollback

    def _take_session_key(self) -> None:
        """The session has one name, in injection and wherever else databases are found by their session."""
        if isinstance(self.session_dependency_key, Unchosen):
            return
        text_setting(type(self).__name__, "session_dependency_key", self.session_dependency_key)
        if self.session_key not in ("", self.session_dependency_key):
            raise ImproperConfigurationError(
                f"{type(self).__name__}: session_key={self.session_key!r} and session_dependency_key="
                f"{self.session_dependency_key!r} are two names of one setting: give one of them."
            )
        self.session_key = self.session_dependency_key

    def _take_handler(self) -> None:
        handler: Any = self.before_send_handler
        if isinstance(handler, str):
            if handler not in MODES:
                raise unknown_value(f"{type(self).__name__}: before_send_handler", handler, MODES)
            if self.commit_mode != "manual" and Policy(self.commit_mode) != Policy(handler):
                raise ImproperConfigurationError(
                    f"{type(self).__name__}: before_send_handler={handler!r} and commit_mode={self.commit_mode!r} say "
                    "different things: give one of them."
                )
            self.commit_mode = cast("CommitMode", handler)
        elif isinstance(handler, PolicyHandler):
            self.take_policy(handler)
        elif handler is not None and not _hears_messages(handler):
            raise ImproperConfigurationError(
                f"{type(self).__name__}: before_send_handler={handler!r}: a callable is needed that takes a message "
                f"and an ASGI scope, what a handler maker returns, or one of {', '.join(map(repr, MODES))}."
            )

    def _derive_keys(self) -> None:
        super()._derive_keys()
        self.session_dependency_key = self.session_key
        for key, pattern in FOLLOWS.items():
            if key not in self._chosen:
                default = str(type(self).__dataclass_fields__[key].default)
                setattr(self, key, default if self.bind_key == "default" else pattern.format(self.bind_key))
        owner = type(self).__name__
        for key in (*FOLLOWS, "session_dependency_key"):
            text_setting(owner, key, getattr(self, key))
        for key in ("session_dependency_key", "engine_dependency_key"):
            refuse_name(owner, key, getattr(self, key))

    def app_state_items(self) -> dict[str, Any]:
        """What lies on the app's state while it runs; without the engine of a maker that does not tell it."""
        database: Any = self
        items = {self.session_maker_app_state_key: database.create_session_maker()}
        with suppress(ImproperConfigurationError):
            items[self.engine_app_state_key] = database.get_engine()
        return items

    def session_of(self, scope: Scope) -> Any:
        database: Any = self
        return unit_of_scope(scope, HOW_TO_GATE).session(database)


@configuration
class SQLAlchemyAsyncConfig(LitestarKeys, alchemy.SQLAlchemyAsyncConfig):
    """A database reached through an `AsyncSession`, injected into Litestar's handlers.

    All settings are those of `transept.alchemy.SQLAlchemyAsyncConfig` and of `LitestarKeys`. JSON columns are written
    and read with Litestar's own codec, unless `engine_config` names another.
    """

    def provide_engine(self, state: State) -> AsyncEngine:
        """The engine, for the running event loop: what is injected under `engine_dependency_key`."""
        return self.get_engine()

    def provide_session(self, state: State, scope: Scope) -> AsyncSession:
        """The request's session, the same object each time: what is injected under `session_dependency_key`.

        It takes a connection with its first statement, is settled before the response is passed on, and is over when
        the response is complete.

        Raises:
            OutsideScope: the request is over, or came through no app that has this plugin.
        """
        session: AsyncSession = self.session_of(scope)
        return session

    @property
    def signature_namespace(self) -> dict[str, Any]:
        """Names that annotations of handlers may use without importing them at run time."""
        return dict(ASYNC_NAMES)

    async def create_all_metadata(self, app: Litestar) -> None:
        """Create the tables of `metadata`, those that are missing. With ``create_all=True`` start-up does it."""
        async with self.get_engine().begin() as connection:
            await connection.run_sync(self._metadata().create_all)

    def create_app_state_items(self) -> dict[str, Any]:
        """Engine and session maker by their keys on the app's state."""
        return self.app_state_items()

    def update_app_state(self, app: Litestar) -> None:
        """Put engine and session maker on the app's state; start-up does it."""
        app.state.update(self.create_app_state_items())

    def _own_engine(self, create: Callable[..., AsyncEngine]) -> AsyncEngine:
        return super()._own_engine(_with_codec(create, self._url))


@configuration
class SQLAlchemySyncConfig(LitestarKeys, alchemy.SQLAlchemySyncConfig):
    """A database reached through a blocking `Session`, injected into Litestar's handlers; else as the async one.

    Use it in handlers that run in threads (``sync_to_thread=True``): in others it blocks the event loop, and warns.
    """

    def provide_engine(self, state: State) -> Engine:
        """The engine: what is injected under `engine_dependency_key`."""
        return self.get_engine()

    def provide_session(self, state: State, scope: Scope) -> Session:
        """The request's session; see `SQLAlchemyAsyncConfig.provide_session`."""
        session: Session = self.session_of(scope)
        return session

    @property
    def signature_namespace(self) -> dict[str, Any]:
        """Names that annotations of handlers may use without importing them at run time."""
        return dict(SYNC_NAMES)

    def create_all_metadata(self, app: Litestar) -> None:
        """Create the tables of `metadata`, those that are missing. With ``create_all=True`` start-up does it."""
        self._metadata().create_all(self.get_engine())

    def create_app_state_items(self) -> dict[str, Any]:
        """Engine and session maker by their keys on the app's state."""
        return self.app_state_items()

    def update_app_state(self, app: Litestar) -> None:
        """Put engine and session maker on the app's state; start-up does it."""
        app.state.update(self.create_app_state_items())

    def _own_engine(self, create: Callable[..., Engine]) -> Engine:
        return super()._own_engine(_with_codec(create, self._url))


def _hears_messages(handler: Any) -> bool:
    """Whether this can be called with a message and a scope; a maker is no handler."""
    if handler in MAKERS or not callable(handler):
        return False
    try:
        signature(handler).bind({}, {})
    except TypeError:
        return False
    except ValueError:  # a callable without a signature to ask
        return True
    return True


def _with_codec(create: Callable[..., E], url: URL | None) -> Callable[..., E]:
    """JSON as Litestar writes and reads it, where the dialect can be told; keywords of the call win."""
    if url is None or url.get_backend_name() not in CODEC_OF:
        return create
    return partial(create, json_serializer=_as_text, json_deserializer=decode_json)


def _as_text(value: Any) -> str:
    return encode_json(value).decode()
