"""A provider that says “look over there” is not believed."""

from __future__ import annotations

import pytest

from tests.system.attacks.listener import Listener, response

KEY, HEADER = "sk-redirected-3b7d55", "header-redirected-0c9e"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("lists_models", [True, False])
def test_a_redirect_to_another_origin_is_not_followed(attacked, listener, status, lists_models):
    def answer(request):
        if lists_models and request.path.endswith("/models"):
            return response(200, {"data": [{"id": "echo"}]})
        return response(status, b"moved", location=f"{listener.url}{request.path}")

    slug = f"redirects-{status}-{lists_models}".lower()
    with Listener(answer) as provider:
        attacked.add(slug, f"{provider.url}/v1", KEY, extra_headers=f"X-Team: {HEADER}")
        probe = attacked.validate(slug)
        assert (probe["passed"], probe["error_kind"]) == (0, "redirect")
        turn = attacked.ask(slug, "words for one server only")
        assert (turn["state"], turn["error_kind"]) == ("failed", "redirect")
        page = attacked.admin.get(f"/connections/{slug}/").text
        assert listener.url.removeprefix("http://") in page
        assert KEY.encode() in provider.received
        assert HEADER.encode() in provider.received
        assert b"words for one server only" in provider.received
        attacked.admin.post(f"/connections/{slug}/delete/")
    assert listener.connections == 0


def test_a_redirect_within_the_origin_is_not_followed_either(attacked):
    def answer(request):
        return response(308, location=f"/elsewhere{request.path}")

    with Listener(answer) as provider:
        attacked.add("redirects-home", f"{provider.url}/v1", KEY)
        turn = attacked.ask("redirects-home", "hello")
        assert turn["error_kind"] == "redirect"
        assert not [one for one in provider.requests if one.path.startswith("/elsewhere")]
        attacked.admin.post("/connections/redirects-home/delete/")
