"""Names that the configurations share."""

from transept.extensions.litestar._handlers import SESSION_SCOPE_KEY

__all__ = ["SESSION_SCOPE_KEY"]
