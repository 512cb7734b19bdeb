"""The design system: its page, its rules, and what its tags say."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from django.conf import settings
from django.template import engines
from django.template.loader import render_to_string
from django.utils import timezone

from config.patterns import SampleForm
from config.templatetags import ui
from workspaces.models import User

TEMPLATES = settings.BASE_DIR / "templates"
STYLES = settings.BASE_DIR / "static" / "css"


def test_an_admin_sees_every_component_on_both_sides(client, db):
    client.force_login(User.objects.create_superuser("alice@example.org"))
    page = client.get("/patterns/").content.decode()
    assert page.count('class="capability"') == 6
    assert 'data-theme="light"' in page
    assert 'data-theme="dark"' in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_nobody_else_sees_the_page(client, db):
    assert client.get("/patterns/").status_code == 302
    client.force_login(User.objects.create_user("bob@example.org"))
    assert client.get("/patterns/").status_code == 403


def test_every_icon_in_use_is_in_the_sprite():
    have = set(re.findall(r'<symbol id="([^"]+)"', (STYLES.parent / "icons.svg").read_text()))
    used = set(ui._ICON_OF.values())
    for path in TEMPLATES.rglob("*.html"):
        text = re.sub(r"{#.*?#}", "", path.read_text())
        used.update(re.findall(r'{% icon "([^"]+)"', text))
        used.update(re.findall(r'\bicon="([^"]+)"', text))
    assert len(used) > 20
    assert used <= have, used - have


def test_no_template_writes_script_style_or_handlers_into_the_page():
    forbidden = re.compile(
        r"\sstyle=|<style|\son[a-z]+=|\shx-on|<script(?![^>]*\ssrc=)|javascript:"
    )
    found = [
        f"{path.name}: {match.group()}"
        for path in TEMPLATES.rglob("*.html")
        for match in forbidden.finditer(path.read_text())
    ]
    assert found == []


def test_colours_stand_in_the_tokens_only():
    literal = re.compile(
        r"#[0-9a-fA-F]{3,8}\b|\b(?:rgba?|hsla?|oklch|oklab|light-dark|color-mix)\("
    )
    found = [
        f"{path.name}: {match.group()}"
        for path in sorted(STYLES.glob("*.css"))
        if path.name != "tokens.css"
        for match in literal.finditer(path.read_text())
    ]
    assert found == []
    assert literal.search((STYLES / "tokens.css").read_text())


def test_every_custom_property_in_use_is_defined():
    text = "".join(path.read_text() for path in STYLES.glob("*.css"))
    defined = set(re.findall(r"(--[a-z][\w-]*):", text))
    assert set(re.findall(r"var\((--[\w-]+)", text)) <= defined


@pytest.mark.parametrize("name", ["400", "403", "403_csrf", "404", "500", "503"])
def test_an_error_page_needs_no_context(name):
    page = render_to_string(f"{name}.html")
    assert "<h1>" in page
    assert "<script" not in page


def test_a_wrong_field_is_joined_to_its_help_and_its_error():
    form = SampleForm({"base_url": "x"})
    html = (
        engines["django"]
        .from_string('{% field form.base_url hx_get="/models/" width="medium" %}')
        .render({"form": form})
    )
    described = re.search(r'aria-describedby="([^"]+)"', html)
    assert described
    for id_ in described[1].split():
        assert f'id="{id_}"' in html
    assert 'aria-invalid="true"' in html
    assert 'hx-get="/models/"' in html
    assert 'data-width="medium"' in html


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (950, "950"),
        (1_250, "1.2K"),
        (2_000, "2K"),
        (128_000, "128K"),
        (999_999, "1M"),
        (1_000_000, "1M"),
        (1_048_576, "1M"),
        (None, "–"),
    ],
)
def test_a_count_is_short(count, text):
    assert ui.compact(count) == text


@pytest.mark.parametrize(
    ("value", "text"), [(87, "87 ms"), (1_240, "1.2 s"), (240_000, "4 min"), (None, "–")]
)
def test_a_duration_is_for_people(value, text):
    assert ui.ms(value) == text


@pytest.mark.parametrize(
    ("age", "text"),
    [
        (timedelta(seconds=-5), "just now"),
        (timedelta(seconds=59), "just now"),
        (timedelta(minutes=7), "7 min ago"),
        (timedelta(hours=23), "23 h ago"),
        (timedelta(days=1), "1 day ago"),
        (timedelta(days=29), "29 days ago"),
    ],
)
def test_an_age_is_in_the_largest_unit_that_fits(age, text):
    now = datetime(2026, 5, 4, 12, tzinfo=UTC)
    assert ui._age(now - age, now) == text


def test_a_time_names_the_exact_moment():
    at = timezone.now() - timedelta(days=400)
    assert f'datetime="{at.isoformat(timespec="seconds")}"' in ui.ago(at)


def test_what_is_shown_is_escaped():
    hostile = '"><script>alert(1)</script>'
    html = render_to_string("components/badge.html", {"tone": "info", "label": hostile})
    html += ui.icon("lock", hostile)
    html += ui.callout("", "info", hostile)
    html += ui.menu("", hostile, hostile, text=hostile)
    assert "<script" not in html


def test_static_files_named_by_the_shells_exist():
    for shell in ("base.html", "error.html"):
        names = re.findall(r"{% static '([^']+)' %}", Path(TEMPLATES / shell).read_text())
        assert names
        for name in names:
            assert (settings.BASE_DIR / "static" / name).is_file(), name
