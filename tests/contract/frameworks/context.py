"""Starlette, with sessions through the context variable."""

from __future__ import annotations

from typing import Any

from starlette.applications import Starlette

from contract.frameworks.starlette import StarletteFramework
from transept import db_session, sync_db_session
from transept.extensions.starlette import add_starlette_http_db_session_middleware


class ContextFramework(StarletteFramework):
    name = "context"

    def takes(self, family: Any) -> bool:
        return bool(family.name == "dbconnect")

    def gate(self, app: Starlette, databases: list[Any]) -> None:
        add_starlette_http_db_session_middleware(app, databases=databases)

    def session(self, request: Any, key: str | None) -> Any:
        return sync_db_session(key)

    async def find(self, request: Any, key: str | None) -> Any:
        return await db_session(key)
