"""Settings → AI: the list of connections and what its menu does."""

import pytest

from tests.builders import KEY, make_connection

pytestmark = pytest.mark.django_db


@pytest.fixture
def page(client_for, alice):
    return client_for(alice)


def test_every_page_answers(page):
    make_connection("local")
    for path in (
        "",
        "new/",
        "new/?preset=openrouter",
        "local/",
        "local/edit/",
        "local/row/",
        "local/delete/confirm/",
    ):
        response = page.get(f"/connections/{path}")
        assert response.status_code == 200, path
        assert KEY not in response.text
    assert page.get("/connections/validate/").status_code == 405
