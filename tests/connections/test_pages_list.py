"""Settings → AI: the list of connections and what its menu does."""

import datetime as dt
import re

import pytest
from django.utils import timezone

from connections.models import Connection, ProbeResult
from connections.presets import PRESETS
from tests.builders import KEY, make_connection, make_secret, make_user
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


def test_an_empty_list_teaches_and_offers_the_providers_with_where_their_keys_are(page):
    html = page.get("/connections/").text
    assert "Connect a model provider" in html
    assert "<table" not in html
    for preset in PRESETS.values():
        assert f'href="/start/{preset.key}/"' in html
        assert preset.key_url in html
    assert 'hx-get="/start/local/"' in html


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


@pytest.mark.parametrize(
    ("slug", "data", "expected"),
    [
        ("d", {"before": "a"}, ["d", "a", "b", "c"]),
        ("a", {"before": "d"}, ["b", "c", "a", "d"]),
        ("a", {"after": "d"}, ["b", "c", "d", "a"]),
        ("c", {"after": "a"}, ["a", "c", "b", "d"]),
        ("b", {"after": "a"}, ["a", "b", "c", "d"]),
    ],
)
def test_a_move_names_the_row_it_goes_before_or_after(page, slug, data, expected):
    for name in "abcd":
        make_connection(name)
    assert page.post(f"/connections/{slug}/order/", data).status_code == 303
    assert order() == expected


def test_a_move_says_where_it_went_and_is_taken_back_by_one_press(page):
    for name in "abc":
        make_connection(name)
    answer = page.post("/connections/c/order/", {"before": "a"}, headers=htmx("connections"))
    assert re.findall(r'<tr id="connection-(\w)"', answer.text) == ["c", "a", "b"]
    assert "“C” is number 1 of 3 now." in answer.text
    undo = re.search(r'formaction="([^"]+)" name="(\w+)" value="(\w+)">Undo<', answer.text)
    assert undo.groups() == ("/connections/c/order/", "after", "b")
    page.post(undo[1], {undo[2]: undo[3]})
    assert order() == ["a", "b", "c"]
    assert AuditEvent.objects.filter(action="connection.reorder").count() == 2


def test_nothing_moves_when_the_neighbour_has_gone_meanwhile(page):
    for name in "abc":
        make_connection(name)
    page.post("/connections/a/delete/")
    answer = page.post("/connections/c/order/", {"before": "a"})
    assert (answer.status_code, answer.text) == (
        400,
        "The list was changed meanwhile. Look at it again, then move “C”.",
    )
    # In the list itself the reason comes with the list as it is now.
    answer = page.post("/connections/c/order/", {"before": "a"}, headers=htmx("connections"))
    assert answer.status_code == 200
    assert re.findall(r'<tr id="connection-(\w)"', answer.text) == ["b", "c"]
    assert "The list was changed meanwhile." in answer.text
    assert order() == ["b", "c"]


@pytest.mark.parametrize(
    ("path", "data", "undo"),
    [
        ("second/default/", {}, {}),
        ("first/enable/", {"enabled": "false"}, {"enabled": "true"}),
        (
            "first/mid-stream/",
            {"mid_stream_behavior": "queue"},
            {"mid_stream_behavior": "steer"},
        ),
    ],
)
def test_what_can_be_taken_back_has_a_button_for_it(page, path, data, undo):
    make_connection("first", is_default=True, mid_stream_behavior="steer")
    make_connection("second")

    def state():
        fields = ("slug", "is_default", "enabled", "mid_stream_behavior")
        return list(Connection.objects.order_by("slug").values(*fields))

    before = state()
    html = page.post(f"/connections/{path}", data, follow=True).text
    assert state() != before
    found = re.search(r'formaction="([^"]+)" name="(\w*)" value="(\w*)">Undo<', html)
    assert ({found[2]: found[3]} if found[2] else {}) == undo
    page.post(found[1], undo, follow=True)
    assert state() == before
    # What changes nothing has nothing to take back.
    assert "Undo" not in page.post(found[1], undo, follow=True).text.partition("<main")[2]


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


# -- which ones ------------------------------------------------------------------------------------


def shown(html):
    return re.findall(r'<tr id="connection-([\w-]+)"', html)


@pytest.fixture
def several(db):
    make_connection("mail-bot", default_model="gpt-large", health="valid")
    make_connection("claude", provider_type="anthropic", health="failed", health_error="auth")
    make_connection("keyless", key=None, note="Paid by research")
    make_connection("at-home", key=None, base_url="http://127.0.0.1:11434/v1")
    make_connection("paused", enabled=False, health="failed", health_error="auth")


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("q=MAIL", ["mail-bot"]),
        ("q=gpt+bot", ["mail-bot"]),
        ("q=11434", ["at-home"]),
        ("q=research", ["keyless"]),
        ("show=failed", ["claude"]),
        ("show=valid", ["mail-bot"]),
        ("show=unchecked", ["keyless", "at-home"]),
        ("show=incomplete", ["keyless"]),
        ("show=disabled", ["paused"]),
        ("provider=anthropic", ["claude"]),
        ("provider=anthropic&show=valid", []),
        ("show=nonsense", []),
        ("q=%25", []),
    ],
)
def test_the_filter_narrows_the_list(page, several, query, expected):
    html = page.get(f"/connections/?{query}").text
    assert shown(html) == expected
    assert ("No connection is like this" in html) is (expected == [])
    assert "data-filtered" in html


def test_a_filtered_row_keeps_its_place_in_the_whole_list(page, several):
    html = page.get("/connections/?q=keyless").text
    assert 'data-place="3"' in row_of(html, "keyless")


def test_a_change_keeps_the_filter_and_the_page(page, several):
    kept = "show=unchecked"
    assert f'name="kept" value="{kept}"' in page.get(f"/connections/?{kept}").text
    answer = page.post("/connections/keyless/enable/", {"enabled": "true", "kept": kept})
    assert answer.headers["Location"] == "/connections/?show=unchecked"
    answer = page.post("/connections/keyless/default/", {"kept": kept}, headers=htmx("connections"))
    assert shown(answer.text) == ["keyless", "at-home"]
    hostile = "next=//evil.example&page=2&x=1&q=" + "y" * 2_000
    answer = page.post("/connections/keyless/enable/", {"enabled": "true", "kept": hostile})
    assert answer.headers["Location"].startswith("/connections/?q=yyy")
    assert "evil" not in answer.headers["Location"]


def test_one_connection_alone_needs_no_filter(page):
    make_connection("only")
    assert 'role="search"' not in page.get("/connections/").text.partition("<main")[2]
    make_connection("another")
    assert 'role="search"' in page.get("/connections/").text.partition("<main")[2]


# -- many at once ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("action", "enabled"), [("pause", False), ("enable", True)])
def test_those_selected_are_paused_and_enabled(page, action, enabled):
    for slug in "abc":
        make_connection(slug, enabled=not enabled)
    data = {"action": action, "slug": ["a", "c"]}
    answer = page.post("/connections/selected/", data, follow=True)
    changed = Connection.objects.filter(enabled=enabled).values_list("slug", flat=True)
    assert set(changed) == {"a", "c"}
    word = "enabled" if enabled else "paused"
    assert f"2 connections are {word}." in answer.text
    page.post("/connections/selected/", data)
    assert (
        AuditEvent.objects.filter(action__in=["connection.enable", "connection.disable"]).count()
        == 2
    )


def test_those_selected_are_deleted_after_a_question(page):
    make_connection("a", is_default=True)
    for slug in "bc":
        make_connection(slug)
    data = {"action": "delete", "slug": ["a", "b"], "kept": "q=x"}
    question = page.post("/connections/selected/", data)
    assert question.status_code == 200
    assert "It is the global default." in question.text
    assert Connection.objects.living().count() == 3
    dialog = page.post("/connections/selected/", data, headers=htmx("dialogs")).text
    assert "<dialog" in dialog
    assert "<html" not in dialog
    answer = page.post("/connections/selected/", data | {"confirmed": "yes"}, follow=True)
    assert "2 connections were deleted. “C” is the global default now." in answer.text
    assert order() == ["c"]
    assert Connection.objects.get(is_default=True).slug == "c"


def test_all_of_them_can_be_deleted(page):
    for slug in "abc":
        make_connection(slug, is_default=slug == "a")
    data = {"action": "delete", "slug": ["a", "b", "c"], "confirmed": "yes"}
    answer = page.post("/connections/selected/", data, follow=True)
    assert "3 connections were deleted." in answer.text
    assert "global default now" not in answer.text
    assert "3 recently deleted" in answer.text


@pytest.mark.parametrize("action", ["pause", "enable", "delete"])
def test_without_a_selection_nothing_happens_and_it_says_so(page, action):
    make_connection("a")
    for slugs in ([], ["missing"], ["a\0b"]):
        data = {"action": action, "slug": slugs}
        answer = page.post("/connections/selected/", data, follow=True)
        assert "Select at least one connection first." in answer.text
    answer = page.post("/connections/selected/", {"action": "delete"}, headers=htmx("dialogs"))
    assert "Select at least one connection first." in answer.text
    assert "<table" not in answer.text
    assert Connection.objects.living().filter(enabled=True).count() == 1


def test_an_action_that_there_is_not_is_a_400(page):
    make_connection("a")
    for action in ("", "destroy"):
        answer = page.post("/connections/selected/", {"action": action, "slug": "a"})
        assert answer.status_code == 400


def finish(*slugs, passed=True):
    ProbeResult.objects.filter(connection__slug__in=slugs).update(
        finished_at=timezone.now(), passed=passed
    )
    Connection.objects.filter(slug__in=slugs).update(checking_until=None)


def test_who_validates_many_sees_how_far_they_are(page, client_for):
    for slug in "abcd":
        make_connection(slug)
    html = page.post("/connections/validate/", {"only": "all"}, follow=True).text
    assert "0 of 4 validated" in html
    finish("a")
    finish("b", passed=False)
    part = page.get("/connections/progress/").text
    assert "2 of 4 validated" in part
    assert "1 failed" in part
    assert 'hx-get="/connections/progress/"' in part
    assert 'value="2" max="4"' in part
    # Another one's pages show their own only.
    other = client_for(make_user("dora@example.com", is_superuser=True))
    assert "validated" not in other.get("/connections/").text
    # No worker came for the last two: it ends all the same.
    finish("c")
    Connection.objects.filter(slug="d").update(checking_until=timezone.now())
    part = page.get("/connections/progress/").text
    assert "4 validated: 2 passed. 1 failed." in part
    assert "?show=failed" in part
    assert "1 was not begun: no worker came." in part
    assert "hx-get" not in part
    # A page that is opened later doesn't tell of it, and those asked for next are counted anew.
    assert "validated" not in page.get("/connections/").text
    html = page.post("/connections/validate/", {"only": "all"}, follow=True).text
    assert "0 of 4 validated" in html


def test_one_validation_alone_has_no_bar(page):
    make_connection("a")
    html = page.post("/connections/validate/", {"only": "all"}, follow=True).text
    assert "of 1 validated" not in html


# -- a copy ----------------------------------------------------------------------------------------


def test_a_copy_begins_with_everything_but_the_secrets(page, workspace):
    one = make_connection("local", mid_stream_behavior="queue", note="Of research", is_default=True)
    make_secret(one, {"x-team": "t0p-s3cret-header-value"}, purpose="headers")
    html = page.get("/connections/new/?like=local").text
    assert "A copy of “Local”" in html
    for value in ("Local (copy)", "https://llm.example.com/v1", "Of research", "small"):
        assert value in html
    assert KEY not in html
    assert KEY[-4:] not in html
    assert "t0p-s3cret" not in html
    # Looking at it makes nothing; without a key it is stored as one that needs a secret.
    assert Connection.objects.count() == 1
    fields = {
        "name": "Local (copy)",
        "provider_type": "openai_compat",
        "auth_type": "api_key_with_endpoint",
        "base_url": "https://llm.example.com/v1",
        "models": "small",
        "default_model": "small",
    }
    page.post("/connections/new/?like=local", fields)
    copy = Connection.objects.get(slug="local-copy")
    assert copy.status == "incomplete"
    assert not copy.secrets.exists()
    assert not copy.is_default


def test_a_copy_of_what_is_not_there_is_404(page):
    make_connection("local")
    page.post("/connections/local/delete/")
    for slug in ("local", "missing"):
        assert page.get(f"/connections/new/?like={slug}").status_code == 404
