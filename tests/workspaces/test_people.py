"""Everybody of the installation: the list, a person's page, and what instance admins do there."""

from __future__ import annotations

import datetime as dt

import pytest
from allauth.mfa.models import Authenticator
from allauth.mfa.recovery_codes.internal.auth import RecoveryCodes
from allauth.mfa.totp.internal.auth import TOTP
from django.db import connection as database
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from tests.builders import (
    PASSWORD,
    add_passkey,
    make_connection,
    make_member,
    make_user,
    make_workspace,
)
from tests.world import make_talk
from workspaces.models import AuditEvent, Membership, Role, User

pytestmark = pytest.mark.django_db


@pytest.fixture
def admin(client_for, alice):
    return client_for(alice)


def emails(page):
    return [person.email for person in page.context["page"]]


def actions():
    return list(AuditEvent.objects.order_by("at").values_list("action", flat=True))


def test_people_are_found_and_filtered(admin, alice, bob, charlie):
    now = timezone.now()
    User.objects.filter(pk=bob.pk).update(name="Bob Miller", last_login=now)
    User.objects.filter(pk=charlie.pk).update(
        is_active=False, last_login=now - dt.timedelta(days=40)
    )
    dora = make_user("dora@example.com")
    TOTP.activate(dora, "SECRET")
    RecoveryCodes.activate(dora)
    add_passkey(bob)
    everybody = [one.email for one in (alice, bob, charlie, dora)]
    assert emails(admin.get("/people/")) == everybody
    for query, found in {
        "q=miller": [bob],
        "q=DORA": [dora],
        "show=active": [alice, bob, dora],
        "show=off": [charlie],
        "show=admins": [alice],
        "show=deleted": [],
        "factor=yes": [bob, dora],
        "factor=no": [alice, charlie],
        "seen=never": [dora],
        "seen=long_ago": [charlie],
        "seen=recently": [alice, bob],
    }.items():
        assert emails(admin.get(f"/people/?{query}")) == [one.email for one in found], query
    assert admin.get("/people/?show=nonsense").status_code == 422
    page = admin.get("/people/?q=bob").text
    assert "Support" in page
    assert "Bob Miller" in page


def test_the_list_takes_the_same_queries_however_long_it_is(admin, workspace):
    def count():
        with CaptureQueriesContext(
            database,
        ) as queries:
            assert admin.get("/people/").status_code == 200
        return len(queries)

    make_member(workspace, make_user("p0@example.com"))
    few = count()
    for number in range(1, 30):
        person = make_user(f"p{number}@example.com")
        make_member(workspace, person)
        make_member(make_workspace(f"space-{number}"), person, Role.ADMIN)
    assert count() == few


def test_an_instance_admin_is_made_and_unmade(admin, alice, bob):
    here = f"/people/{bob.pk}/admin/"
    assert admin.post(here, {"admin": "true"}).status_code == 303
    bob.refresh_from_db()
    assert bob.is_superuser
    # Never oneself; and somebody else's right only while another is left.
    mine = admin.post(f"/people/{alice.pk}/admin/", {"admin": "false"})
    assert mine.status_code == 409
    assert "yourself" in mine.text or "themselves" in mine.text
    assert admin.post(here, {"admin": "false"}).status_code == 303
    bob.refresh_from_db()
    assert not bob.is_superuser
    assert admin.post(here, {"admin": "perhaps"}).status_code == 422
    assert actions()[-2:] == ["user.admin", "user.unadmin"]


def test_the_last_instance_admin_stays(client_for, alice, bob):
    """Two tabs of two admins: the first to act leaves the other as the last."""
    User.objects.filter(pk=bob.pk).update(is_superuser=True)
    other = client_for(User.objects.get(pk=bob.pk))
    assert client_for(alice).post(f"/people/{bob.pk}/deactivate/").status_code == 303
    assert other.post(f"/people/{alice.pk}/deactivate/").status_code == 302  # signed out by then
    alice.refresh_from_db()
    assert alice.is_active
    assert client_for(alice).post(f"/people/{alice.pk}/deactivate/").status_code == 409


def sign_in(user):
    client = Client()
    data = {"login": user.email, "password": PASSWORD}
    assert client.post("/accounts/login/", data).status_code == 302
    return client


def test_who_is_switched_off_is_out_and_comes_back(admin, bob):
    his = sign_in(bob)
    assert his.get("/w/support/").status_code == 200
    assert admin.get(f"/people/{bob.pk}/deactivate/").status_code == 200
    assert admin.post(f"/people/{bob.pk}/deactivate/").status_code == 303
    assert his.get("/w/support/").status_code == 302
    assert not Authenticator.objects.exists()
    assert "Switched off" in admin.get(f"/people/{bob.pk}/").text
    assert admin.post(f"/people/{bob.pk}/activate/").status_code == 303
    assert his.get("/w/support/").status_code == 302  # the sign-in of before is gone
    assert sign_in(bob).get("/w/support/").status_code == 200
    assert [one for one in actions() if "activate" in one] == ["user.deactivate", "user.activate"]


def test_switching_off_hands_the_sessions_over(admin, workspace, bob, charlie):
    make_member(workspace, charlie)
    talk = make_talk(workspace, bob, make_connection())
    page = admin.get(f"/people/{bob.pk}/deactivate/")
    assert "1 session in Support" in page.text
    wrong = {"to-0-receiver": str(bob.pk)}
    assert admin.post(f"/people/{bob.pk}/deactivate/", wrong).status_code == 422
    bob.refresh_from_db()
    assert bob.is_active
    right = {"to-0-receiver": str(charlie.pk)}
    assert admin.post(f"/people/{bob.pk}/deactivate/", right).status_code == 303
    talk.chat.refresh_from_db()
    assert talk.chat.owner == charlie
    row = AuditEvent.objects.get(action="session.transfer")
    assert row.details == {"sessions": 1, "giver": bob.email, "receiver": charlie.email}


def test_roles_and_places_change_from_the_person_s_page(admin, workspace, charlie):
    here = f"/people/{charlie.pk}/"
    add = {"workspace": "support", "role": "viewer"}
    assert admin.post(f"{here}workspaces/add/", add).status_code == 303
    assert admin.post(f"{here}workspaces/add/", {"workspace": "x"}).status_code == 422
    place = Membership.objects.get(user=charlie)
    assert place.role == Role.VIEWER
    assert '<option value="support"' not in admin.get(here).text  # is there already
    change = {"role": "member", "next": "person"}
    answer = admin.post(f"/w/support/members/{place.pk}/role/", change)
    assert answer.headers["location"] == here
    remove = f"/w/support/members/{place.pk}/remove/"
    assert 'name="next"' in admin.get(f"{remove}?next=person").text
    assert admin.post(remove, {"next": "person"}).headers["location"] == here
    assert not Membership.objects.filter(user=charlie).exists()
    assert '<option value="support"' in admin.get(here).text
    assert actions() == ["membership.create", "membership.update", "membership.delete"]


def test_a_sign_in_link_is_shown_once(admin, alice, bob, settings):
    page = admin.post(f"/people/{bob.pk}/sign-in-link/")
    link = page.context["link"]
    assert link in page.text
    assert link not in admin.get(f"/people/{bob.pk}/").text
    row = AuditEvent.objects.get(action="user.sign_in_link")
    assert (row.actor, row.target_label, row.details) == (alice, bob.email, {})
    path = link.removeprefix(settings.PUBLIC_URL)
    stranger = Client()
    assert stranger.post(path).status_code == 303
    assert stranger.get("/w/support/").status_code == 200
    settings.SSO_ONLY = True
    assert admin.post(f"/people/{bob.pk}/sign-in-link/").status_code == 409


def test_the_second_factor_and_the_devices_are_reset(admin, bob):
    his = sign_in(bob)
    TOTP.activate(bob, "SECRET")
    add_passkey(bob)
    add_passkey(bob)
    page = admin.get(f"/people/{bob.pk}/").text
    assert "Has a second factor: Authenticator app and 2 passkeys" in page
    assert admin.post(f"/people/{bob.pk}/second-factor/").status_code == 303
    assert "Has no second factor" in admin.get(f"/people/{bob.pk}/").text
    assert admin.post(f"/people/{bob.pk}/devices/sign-out/").status_code == 303
    assert his.get("/w/support/").status_code == 302
    assert actions()[-2:] == ["user.second_factor_off", "user.sign_out_everywhere"]


def test_a_person_is_invited(admin, workspace):
    data = {"email": "new@example.com", "workspace": "support", "role": "admin"}
    page = admin.post("/people/invite/", data)
    assert page.status_code == 200
    assert page.context["link"] in page.text
    assert "new@example.com" in admin.get("/w/support/members/").text
    wrong = admin.post("/people/invite/", {**data, "email": "no address"})
    assert wrong.status_code == 422
    assert "no address" in wrong.text


def test_the_page_tells_what_the_audit_has_about_the_person(admin, bob):
    admin.post(f"/people/{bob.pk}/devices/sign-out/")
    page = admin.get(f"/people/{bob.pk}/")
    assert "signed out all devices of" in page.text
    assert [one.event.target_label for one in page.context["events"]] == [bob.email]
