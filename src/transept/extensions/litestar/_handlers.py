"""What Litestar users write for "commit by status": `before_send` handlers, here objects that carry a policy.

Given to a configuration, or to ``Litestar(before_send=...)``, such a handler is recognised and never called: the gate
settles by its policy. Called by hand, from a handler of the app's own, it does to the session what its name says.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from litestar.constants import HTTP_RESPONSE_START
from litestar.types import Message, Scope

from transept.policy import Policy

__all__ = [
    "MAKERS",
    "SESSION_SCOPE_KEY",
    "AsyncHandler",
    "PolicyHandler",
    "SyncHandler",
    "autocommit_before_send_handler",
    "autocommit_handler_maker",
    "default_before_send_handler",
    "default_handler_maker",
    "sync_autocommit_before_send_handler",
    "sync_autocommit_handler_maker",
    "sync_default_before_send_handler",
    "sync_default_handler_maker",
]

SESSION_SCOPE_KEY = "_sqlalchemy_db_session"
"""Where a `before_send` handler finds the session: ``scope["state"][session_scope_key]``, if the request has one."""


class PolicyHandler:
    """A `before_send` handler that is a policy: which responses commit."""

    blocking: bool

    def __init__(self, policy: Policy, session_scope_key: str) -> None:
        self.policy = policy
        self.session_scope_key = session_scope_key

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.policy.mode!r} of {self.session_scope_key!r}>"

    def _session(self, message: Message, scope: Scope) -> Any:
        """The session to be settled for this message, if it is the start of a response and there is one."""
        return scope["state"].get(self.session_scope_key) if message["type"] == HTTP_RESPONSE_START else None

    def _keeps(self, message: Message) -> bool:
        status: Any = message.get("status")
        return self.policy.keeps(status)


class AsyncHandler(PolicyHandler):
    """A `PolicyHandler` of an async database."""

    blocking = False

    async def __call__(self, message: Message, scope: Scope) -> None:
        """Commit or roll back the session before a response starts.

        Raises:
            Exception: what the commit raises.
        """
        session = self._session(message, scope)
        if session is not None:
            await (session.commit() if self._keeps(message) else session.rollback())


class SyncHandler(PolicyHandler):
    """A `PolicyHandler` of a blocking database."""

    blocking = True

    def __call__(self, message: Message, scope: Scope) -> None:
        """As that of `AsyncHandler`, blocking: Litestar calls it in a worker thread."""
        session = self._session(message, scope)
        if session is not None:
            (session.commit if self._keeps(message) else session.rollback)()


def default_handler_maker(session_scope_key: str = SESSION_SCOPE_KEY) -> AsyncHandler:
    """A handler that commits nothing: the app does.

    Args:
        session_scope_key: the key of the configuration whose session is meant.
    """
    return AsyncHandler(Policy("manual"), session_scope_key)


def autocommit_handler_maker(
    commit_on_redirect: bool = False,
    extra_commit_statuses: Collection[int] | None = None,
    extra_rollback_statuses: Collection[int] | None = None,
    session_scope_key: str = SESSION_SCOPE_KEY,
) -> AsyncHandler:
    """A handler that commits by the status of the response: 2xx, and what the arguments say.

    Args:
        commit_on_redirect: commit 3xx, too.
        extra_commit_statuses: statuses that commit, whatever their range.
        extra_rollback_statuses: statuses that do not, whatever their range.
        session_scope_key: the key of the configuration whose session is meant.

    Raises:
        ImproperConfigurationError: a status is in both sets, or is none.
    """
    return AsyncHandler(_policy(commit_on_redirect, extra_commit_statuses, extra_rollback_statuses), session_scope_key)


def sync_default_handler_maker(session_scope_key: str = SESSION_SCOPE_KEY) -> SyncHandler:
    """As `default_handler_maker`, for a blocking database."""
    return SyncHandler(Policy("manual"), session_scope_key)


def sync_autocommit_handler_maker(
    commit_on_redirect: bool = False,
    extra_commit_statuses: Collection[int] | None = None,
    extra_rollback_statuses: Collection[int] | None = None,
    session_scope_key: str = SESSION_SCOPE_KEY,
) -> SyncHandler:
    """As `autocommit_handler_maker`, for a blocking database."""
    return SyncHandler(_policy(commit_on_redirect, extra_commit_statuses, extra_rollback_statuses), session_scope_key)


def _policy(on_redirect: bool, commit: Collection[int] | None, rollback: Collection[int] | None) -> Policy:
    return Policy.of("autocommit_include_redirect" if on_redirect else "autocommit", commit, rollback)


MAKERS = (
    default_handler_maker,
    autocommit_handler_maker,
    sync_default_handler_maker,
    sync_autocommit_handler_maker,
)

default_before_send_handler = default_handler_maker()
autocommit_before_send_handler = autocommit_handler_maker()
sync_default_before_send_handler = sync_default_handler_maker()
sync_autocommit_before_send_handler = sync_autocommit_handler_maker()
