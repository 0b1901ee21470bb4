"""A teardown function that raises: the answer stands, and what the teardown did does not."""

from __future__ import annotations

import pytest
from flask_site import Site


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
    assert "kept its work; its teardown failed" in caplog.text
