"""The context API by the pure ASGI middleware, for any framework: ``python3 run.py example context_asgi``."""

from __future__ import annotations

from context_shared import routes
from context_shared.database import lifespan
from fastapi import FastAPI

from transept import ASGIHTTPDBSessionMiddleware

app = FastAPI(lifespan=lifespan)
app.add_middleware(ASGIHTTPDBSessionMiddleware)

for function in routes.POST:
    app.post(f"/{function.__name__}", response_model=None)(function)
for function in routes.GET:
    app.get(f"/{function.__name__}")(function)
