"""The sessions on a request's state, by their session keys."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import Any

from transept.context import UnitScope
from transept.database import Database, Registry

__all__ = ["make_lazy"]


class LazyState(MutableMapping[str, Any]):
    """The request's state, in which a session is made when it is first looked at.

    A view of the mapping that was there: what middleware above and the app below write, both see.
    """

    __slots__ = ("_databases", "_given", "_units")

    def __init__(self, given: MutableMapping[str, Any], units: UnitScope, databases: dict[str, Database]) -> None:
        self._given = given
        self._units = units
        self._databases = databases

    def __getitem__(self, key: str) -> Any:
        try:
            return self._given[key]
        except KeyError:
            database = self._databases.get(key)
            if database is None:
                raise
        return self._units.open().session(database)

    def __setitem__(self, key: str, value: Any) -> None:
        self._given[key] = value

    def __delitem__(self, key: str) -> None:
        del self._given[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._given)

    def __len__(self) -> int:
        return len(self._given)

    def __contains__(self, key: object) -> bool:
        return key in self._given

    def copy(self) -> LazyState:
        return LazyState(dict(self._given), self._units, self._databases)


def make_lazy(scope: MutableMapping[str, Any], units: UnitScope, registry: Registry) -> None:
    databases = registry.session_keys()
    if not databases:
        return
    given: Any = scope.get("state")
    if type(given) is LazyState:  # an isinstance() of an abstract class costs more than all the rest
        databases = {**given._databases, **databases}
        given = given._given
    scope["state"] = LazyState({} if given is None else given, units, databases)
