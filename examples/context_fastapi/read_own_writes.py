"""A client that has written reads from a replica only when that has caught up with what the client was told.

The client carries a position in PostgreSQL's write-ahead log, as a cookie. It is taken *after* the commit: one that was
taken before does not cover the commit itself, and a replica that has come so far may still not show the row.

EXAMPLE_REPLICA is the replica's host; without it, the master is asked as if it were one.
"""

from __future__ import annotations

import os
from typing import Annotated

from context_shared.database import URL, Example, connection, create_engine, create_session_maker
from fastapi import APIRouter, Cookie, Response
from sqlalchemy import insert, select, text

from transept import DBConnect, atomic_db_session, db_session

COOKIE = "written_at"
HAS_POSITIONS = URL.get_backend_name() == "postgresql"
POSITION = text("SELECT pg_current_wal_insert_lsn()::text")
HAS_REACHED = text("SELECT NOT pg_is_in_recovery() OR pg_last_wal_replay_lsn() >= CAST(:position AS text)::pg_lsn")

replica = DBConnect(
    bind_key="replica",
    host=os.environ.get("EXAMPLE_REPLICA", connection.host),
    engine_creator=create_engine,
    session_maker_creator=create_session_maker,
)
router = APIRouter()


@router.post("/read_own_writes")
async def write_and_remember(response: Response) -> str:
    async with atomic_db_session(connection) as session:
        await session.execute(insert(Example).values(text="mine"))
    # The end of the block has committed. What is asked now is asked in the next transaction.
    if HAS_POSITIONS:
        position = await session.scalar(POSITION)
        response.set_cookie(COOKIE, str(position), httponly=True)
    return "kept"


@router.get("/read_own_writes")
async def read(written_at: Annotated[str | None, Cookie()] = None) -> dict[str, object]:
    database = await up_to_date(written_at)
    session = await db_session(database)
    texts = await session.scalars(select(Example.text).order_by(Example.id))
    return {"asked": database.key, "rows": list(texts)}


async def up_to_date(position: str | None) -> DBConnect:
    """The replica, or the master if the replica is behind what the client has written."""
    if position is None or not HAS_POSITIONS:
        return replica
    session = await db_session(replica)
    return replica if await session.scalar(HAS_REACHED, {"position": position}) else connection
