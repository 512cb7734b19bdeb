"""Settings → AI: the list of connections and what its menu does."""

import datetime as dt
import re

import pytest
from django.utils import timezone

from connections.models import Connection, ProbeResult
from tests.builders import KEY, make_connection
from workspaces.models import AuditEvent

pytestmark = pytest.mark.django_db


@pytest.fixture
def page(client_for, alice):
    return client_for(alice)


def row_of(html, slug):
    return re.search(rf'<tr id="connection-{slug}".*?</tr>', html, re.DOTALL)[0]


def htmx(target):
    return {"HX-Request": "true", "HX-Target": target}


def order():
    return list(Connection.objects.living().values_list("slug", flat=True))


def test_a_row_shows_name_provider_model_health_with_its_age_and_the_default(page):
    connection = make_connection("local", is_default=True, health="valid")
    connection.health_at = timezone.now() - dt.timedelta(minutes=3, seconds=5)
    connection.save()
    make_connection("second", health="failed", health_error="auth", health_at=timezone.now())
    html = page.get("/connections/").text
    row = row_of(html, "local")
    assert 'data-status="valid"' in row
    for text in ("Local", "OpenAI-compatible endpoint", "API key with endpoint", "small"):
        assert text in row
    assert "3 min ago" in row
    assert "Default" in row
    second = row_of(html, "second")
    assert 'data-status="failed"' in second
    assert "Key rejected" in second
    assert "Default</span>" not in second
    assert KEY not in html


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({}, "unchecked", "Not checked yet"),
        ({"key": None}, "incomplete", "Secret needed"),
        ({"enabled": False, "paused_message": "Back on Monday."}, "disabled", "Back on Monday."),
        ({"health": "failed", "health_error": "quota"}, "failed", "Failed"),
    ],
)
def test_the_status_of_a_row_is_that_of_the_connection(page, fields, status, words):
    make_connection("local", **fields)
    row = row_of(page.get("/connections/").text, "local")
    assert f'data-status="{status}"' in row
    assert words in row
    assert "hx-trigger" not in row


def test_a_secret_that_no_longer_opens_shows_and_the_other_rows_work(page):
    broken = make_connection("broken")
    make_connection("fine")
    # The ciphertext moves to another row.
    other = make_connection("other").secrets.get()
    broken.secrets.update(value=other.value.stored)
    html = page.get("/connections/").text
    assert 'data-status="sealed"' in row_of(html, "broken")
    assert "Secret unreadable" in row_of(html, "broken")
    assert 'data-status="unchecked"' in row_of(html, "fine")


def test_an_empty_list_offers_the_presets(page):
    html = page.get("/connections/").text
    assert "No connections yet" in html
    assert "/connections/new/?preset=openrouter" in html
    assert "<table" not in html


@pytest.mark.parametrize("path", ["/connections/", "/w/support/settings/ai/"])
def test_the_queries_do_not_grow_with_the_rows(
    page, path, workspace, django_assert_num_queries, django_assert_max_num_queries
):
    make_connection("first")
    with django_assert_max_num_queries(12) as few:
        page.get(path)
    for number in range(49):
        make_connection(f"more-{number}", health="failed", health_error="auth")
    with django_assert_num_queries(len(few)):
        html = page.get(path).text
    assert html.count('<tr id="connection-') == 30


def test_many_rows_come_in_pages(page):
    Connection.objects.bulk_create(
        Connection(
            slug=f"c{n}",
            name=f"C{n}",
            provider_type="openai_compat",
            auth_type="none",
            base_url="https://llm.example.com/v1",
            position=n,
        )
        for n in range(31)
    )
    first, second = page.get("/connections/").text, page.get("/connections/?page=2").text
    assert first.count('<tr id="connection-') == 30
    assert re.findall(r'<tr id="connection-(\w+)"', second) == ["c30"]
    assert page.get("/connections/?page=nonsense").status_code == 200


# -- validating ------------------------------------------------------------------------------------


def test_validate_shows_checking_and_the_row_asks_for_itself_until_it_is_done(page):
    connection = make_connection("local")
    answer = page.post("/connections/local/validate/", headers=htmx("connection-local"))
    row = row_of(answer.text, "local")
    assert 'data-status="checking"' in row
    assert 'hx-get="/connections/local/row/"' in row
    assert 'hx-swap-oob="beforeend:#toasts"' in answer.text
    assert page.get("/connections/local/row/").status_code == 204
    Connection.objects.filter(pk=connection.pk).update(
        checking_until=None, health="valid", health_at=timezone.now()
    )
    row = row_of(page.get("/connections/local/row/").text, "local")
    assert 'data-status="valid"' in row
    assert "hx-trigger" not in row


def test_checking_ends_when_no_worker_comes_back(page):
    ended = timezone.now() - dt.timedelta(seconds=1)
    make_connection("local", checking_until=ended)
    row = row_of(page.get("/connections/local/row/").text, "local")
    assert 'data-status="unchecked"' in row


def test_the_row_of_a_deleted_connection_goes(page):
    connection = make_connection("local")
    page.post("/connections/local/delete/")
    answer = page.get("/connections/local/row/")
    assert (answer.status_code, answer.text) == (200, "")
    assert not Connection.objects.living().filter(pk=connection.pk).exists()


def test_a_double_click_on_validate_is_one_probe(page):
    make_connection("local")
    for _press in range(2):
        assert page.post("/connections/local/validate/").status_code == 303
    assert ProbeResult.objects.count() == 1
    assert AuditEvent.objects.filter(action="connection.validate").count() == 1


def test_without_htmx_a_post_leads_back_to_where_it_came_from(page):
    make_connection("local")
    answer = page.post("/connections/local/validate/")
    assert (answer.status_code, answer.headers["Location"]) == (303, "/connections/")
    answer = page.post("/connections/local/enable/", {"next": "detail"})
    assert answer.headers["Location"] == "/connections/local/"
    answer = page.post("/connections/local/enable/", {"next": "//evil.example"})
    assert answer.headers["Location"] == "/connections/"


@pytest.mark.parametrize(
    ("data", "probed"),
    [
        ({}, {"a", "b", "c"}),
        ({"slug": ["a", "c"]}, {"a", "c"}),
        ({"slug": ["a", "c"], "only": "selected"}, {"a", "c"}),
        ({"slug": ["a"], "only": "all"}, {"a", "b", "c"}),
        ({"only": "selected"}, set()),
        ({"slug": ["missing"]}, set()),
    ],
)
def test_validate_takes_those_selected_or_all(page, data, probed):
    for slug in "abc":
        make_connection(slug)
    assert page.post("/connections/validate/", data).status_code == 303
    assert set(ProbeResult.objects.values_list("connection__slug", flat=True)) == probed


def test_validate_all_by_htmx_swaps_the_list(page):
    for number in range(12):
        make_connection(f"c{number}")
    answer = page.post("/connections/validate/", {"only": "all"}, headers=htmx("connections"))
    assert answer.text.count('data-status="checking"') == 12
    # Twelve rows don't ask every second each.
    assert 'hx-trigger="every 2s"' in answer.text
    assert "12 validations have begun." in answer.text
    assert "<html" not in answer.text


# -- the menu --------------------------------------------------------------------------------------


def test_the_default_moves(page):
    make_connection("first", is_default=True)
    make_connection("second")
    answer = page.post("/connections/second/default/", headers=htmx("connections"))
    assert "Default</span>" in row_of(answer.text, "second")
    assert "Default</span>" not in row_of(answer.text, "first")
    assert Connection.objects.get(is_default=True).slug == "second"


@pytest.mark.parametrize("behaviour", ["steer", "queue", ""])
def test_mid_stream_takes_steer_queue_or_nothing(page, behaviour):
    make_connection("local", mid_stream_behavior="steer")
    data = {"mid_stream_behavior": behaviour}
    assert page.post("/connections/local/mid-stream/", data).status_code == 303
    assert Connection.objects.get().mid_stream_behavior == behaviour


@pytest.mark.parametrize(
    ("path", "data"),
    [
        ("mid-stream/", {"mid_stream_behavior": "both"}),
        ("mid-stream/", {}),
        ("mid-stream/", {"mid_stream_behaviour": "queue"}),
        ("enable/", {"enabled": "perhaps"}),
        ("enable/", {"enabled": ""}),
        ("enable/", {"enabled": "false", "paused_message": "x" * 301}),
        ("order/", {}),
        ("order/", {"direction": "left"}),
        ("order/", {"position": "-1"}),
        ("order/", {"position": "²"}),
        ("order/", {"position": "9" * 30}),
    ],
)
def test_what_means_nothing_is_a_400_with_a_sentence(page, path, data):
    make_connection("local")
    before = Connection.objects.values().get()
    answer = page.post(f"/connections/local/{path}", data)
    assert answer.status_code == 400
    assert answer.text.endswith(".")
    assert Connection.objects.values().get() == before


def test_pause_and_enable(page):
    make_connection("local")
    data = {"enabled": "false", "paused_message": "Back on Monday."}
    page.post("/connections/local/enable/", data)
    assert "Back on Monday." in row_of(page.get("/connections/").text, "local")
    page.post("/connections/local/enable/", {"enabled": "true"})
    assert Connection.objects.get().enabled
    page.post("/connections/local/enable/")
    assert not Connection.objects.get().enabled


@pytest.mark.parametrize("word", ["true", "on", "1", "false", "off", "0"])
def test_pause_and_enable_take_the_words_of_the_form(page, word):
    make_connection("local", enabled=word in ("false", "off", "0"))
    assert page.post("/connections/local/enable/", {"enabled": word}).status_code == 303
    assert Connection.objects.get().enabled is (word in ("true", "on", "1"))


@pytest.mark.parametrize(
    ("slug", "data", "expected"),
    [
        ("b", {"direction": "up"}, ["b", "a", "c"]),
        ("b", {"direction": "down"}, ["a", "c", "b"]),
        ("a", {"direction": "up"}, ["a", "b", "c"]),
        ("c", {"direction": "down"}, ["a", "b", "c"]),
        ("c", {"position": "0"}, ["c", "a", "b"]),
        ("a", {"position": "99"}, ["b", "c", "a"]),
    ],
)
def test_the_order_changes(page, slug, data, expected):
    for name in "abc":
        make_connection(name)
    assert page.post(f"/connections/{slug}/order/", data).status_code == 303
    assert order() == expected


def test_deleting_asks_first_and_says_what_depends_on_it(page, workspace):
    from tests.builders import give_access

    local = make_connection("local", is_default=True)
    make_connection("heir", name="The heir")
    give_access(workspace, local, is_default=True)
    question = page.get("/connections/local/delete/confirm/").text
    assert "It is the global default." in question
    assert "Support" in question
    assert 'action="/connections/local/delete/"' in question
    dialog = page.get("/connections/local/delete/confirm/", headers=htmx("dialogs")).text
    assert "<dialog" in dialog
    assert "<html" not in dialog
    answer = page.post("/connections/local/delete/", follow=True)
    assert "“The heir” is the global default now." in answer.text
    assert "Without a default now: Support." in answer.text
    assert 'id="connection-local"' not in answer.text
    assert Connection.objects.get(is_default=True).slug == "heir"
