"""The context API in a FastAPI app: ``python3 run.py example context_fastapi``."""

from __future__ import annotations

from context_fastapi.read_own_writes import replica, router
from context_shared import routes
from context_shared.database import connection, lifespan
from fastapi import FastAPI

from transept.extensions.fastapi import add_fastapi_http_db_session_middleware

app = FastAPI(lifespan=lifespan)
add_fastapi_http_db_session_middleware(app, databases=[connection, replica])  # stopped with the app
app.include_router(router)

for function in routes.POST:
    app.post(f"/{function.__name__}", response_model=None)(function)
for function in routes.GET:
    app.get(f"/{function.__name__}")(function)
