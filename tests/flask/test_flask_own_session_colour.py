"""`with_session` in the wrong colour is refused at once, and says what is right."""

from __future__ import annotations

from flask_site import Held, Site

from transept import UsageError


def test_with_session_in_an_async_view_says_that_it_is_awaited(async_site: Site):
    told: list[str] = []

    @async_site.view
    async def view():
        try:
            with async_site.db.with_session():
                pass
        except UsageError as error:
            told.append(str(error))
        async with async_site.db.with_session() as session:
            session.add(Held(v=1))
        return "made", 201

    assert (async_site.post().status_code, async_site.held()) == (201, [1])
    assert told == ["the session of database 'default', whose driver is awaited: use `async with`."]
