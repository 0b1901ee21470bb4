"""What teardown functions write is kept; one that raises changes no answer, and what it wrote is not kept."""

from __future__ import annotations

import pytest
from flask_site import Site


def test_what_a_teardown_writes_after_a_view_without_a_session_is_kept(site: Site):
    @site.view
    def view():
        return "nothing to write", 409

    @site.app.teardown_request
    def writes(error: BaseException | None):
        site.add(1)

    assert (site.post().status_code, site.held()) == (409, [1])


def test_what_a_failing_teardown_wrote_is_rolled_back(site: Site, caplog: pytest.LogCaptureFixture):
    after_a_failing_teardown(site, caplog)


def test_what_a_failing_teardown_wrote_over_an_async_database_is_rolled_back(
    async_site: Site, caplog: pytest.LogCaptureFixture
):
    after_a_failing_teardown(async_site, caplog)


def after_a_failing_teardown(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    @site.view
    def view():
        site.add(1)
        return "made", 201

    @site.app.teardown_request
    def fails(error: BaseException | None):
        site.add(2)
        raise ValueError("of the teardown")

    answer = site.post()
    assert (answer.status_code, answer.text, site.held()) == (201, "made", [1])
    assert "its work settled; its teardown failed" in caplog.text
