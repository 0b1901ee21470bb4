"""A gate written by hand: for a framework that has neither ASGI nor WSGI middleware, and for tests.

    token = init_db_session_ctx()
    try:
        response = await handle(request)
        await auto_commit_by_status_code(response.status_code)
    except BaseException:
        await rollback_all_sessions()
        raise
    finally:
        await reset_db_session_ctx(token)

Send nothing to the client before `auto_commit_by_status_code` has returned: what it raises is the answer.
"""

from __future__ import annotations

from contextvars import Token

from transept.context import CURRENT, LOOP, NamedScope, UnitScope, current_scope, open_scope
from transept.database import Database
from transept.errors import CommitFailed, ContextAlreadyInitiatedError, OutsideScope, inside_a_block
from transept.gate.answer import always, outcome_of, report
from transept.unit import BeforeCommit, Unit

__all__ = [
    "auto_commit_by_status_code",
    "close_all_sessions",
    "commit_all_sessions",
    "init_db_session_ctx",
    "reset_db_session_ctx",
    "rollback_all_sessions",
]


def init_db_session_ctx(force: bool = False) -> Token[UnitScope | None]:
    """Begin a context for `db_session` in the current task; give the token to `reset_db_session_ctx`.

    Raises:
        ContextAlreadyInitiatedError: there is one, and `force` is not set.
    """
    outer = open_scope()
    if outer is not None and not force:
        raise ContextAlreadyInitiatedError(
            f"{outer.describe()} has a context already: use it, or begin one inside it with force=True."
        )
    return CURRENT.set(NamedScope(LOOP, "the context that init_db_session_ctx() began"))


async def reset_db_session_ctx(token: Token[UnitScope | None], with_close: bool = True) -> None:
    """End the context. With `with_close`, what is not committed is rolled back, and every session ends."""
    scope = CURRENT.get()
    try:
        if with_close and scope is not None:
            await _close(scope)
    finally:
        if scope is not None:
            scope.end()
        CURRENT.reset(token)


async def auto_commit_by_status_code(status_code: int, before_commit: BeforeCommit | None = None) -> None:
    """Settle the context's sessions as a response with this HTTP status does: each database by its commit mode.

    Warns of a success whose work was not kept, as the gates do.

    Raises:
        UsageError: inside a block, whose end decides.
        Exception: the error of the database that could not commit; all others are rolled back.
        PartlyCommitted: an earlier one was kept already.
    """
    unit = _unit("auto_commit_by_status_code", before_commit)
    if unit is not None:
        report(unit, await unit.settle(outcome_of(status_code)), status_code)


async def commit_all_sessions(before_commit: BeforeCommit | None = None) -> None:
    """Commit every session of the context, all or none as far as can be known before the first one commits.

    `before_commit` is awaited with each session before. Raises as `auto_commit_by_status_code`, and `CommitFailed` if
    the unit is doomed.
    """
    unit = _unit("commit_all_sessions", before_commit)
    if unit is not None:
        keys = [database.key for database, handle in unit.handles() if handle.in_transaction()]
        settled = await unit.settle(always)
        if keys and settled.kept is False and unit.doomed is not None:
            raise CommitFailed(", ".join(keys), unit.doomed, "")


async def rollback_all_sessions() -> None:
    """Roll every session of the context back.

    Raises:
        UsageError: inside a block, whose end decides.
    """
    unit = _unit("rollback_all_sessions")
    if unit is not None:
        await unit.settle(_never)


async def close_all_sessions() -> None:
    """End every session of the context, and roll back what is open. `db_session` gives new ones.

    Raises:
        UsageError: inside a block, whose end decides.
    """
    scope = current_scope()
    if scope is not None:
        _refuse_inside_block(scope.unit, "close_all_sessions")
        await _close(scope)


async def _close(scope: UnitScope) -> None:
    unit, scope.unit = scope.unit, None
    if unit is not None:
        await unit.close()


def _unit(asks: str, before_commit: BeforeCommit | None = None) -> Unit | None:
    """The context's unit, if a session has been asked for, and this function may settle it."""
    scope = current_scope()
    if scope is None:
        raise OutsideScope("there is no context here: init_db_session_ctx() begins one.")
    unit = scope.unit
    _refuse_inside_block(unit, asks)
    if unit is not None and before_commit is not None:
        unit.before_commit = before_commit
    return unit


def _refuse_inside_block(unit: Unit | None, asks: str) -> None:
    if unit is not None and unit.blocks:
        raise inside_a_block(f"{asks}()")


def _never(database: Database | None) -> bool:
    return False
