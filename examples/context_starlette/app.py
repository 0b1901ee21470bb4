"""The context API in a Starlette app: ``python3 run.py example context_starlette``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from context_shared import routes
from context_shared.database import lifespan
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from transept.extensions.starlette import add_starlette_http_db_session_middleware


def route(function: Callable[[], Awaitable[Any]], method: str) -> Route:
    async def endpoint(request: Request) -> Response:
        result = await function()
        return result if isinstance(result, Response) else JSONResponse(result)

    return Route(f"/{function.__name__}", endpoint, methods=[method])


app = Starlette(
    routes=[route(one, "POST") for one in routes.POST] + [route(one, "GET") for one in routes.GET],
    lifespan=lifespan,
)
add_starlette_http_db_session_middleware(app)
