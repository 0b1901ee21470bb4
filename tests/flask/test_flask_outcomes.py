"""The status decides, after every `after_request` function has had its say."""

from __future__ import annotations

from flask_site import Site


def test_what_is_answered_201_is_kept(site: Site):
    @site.view
    def view():
        site.add(1)
        return "made", 201

    assert (site.post().status_code, site.held()) == (201, [1])
