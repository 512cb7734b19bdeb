"""Who is in a workspace: invitations, roles, leaving."""

from __future__ import annotations

import datetime as dt
import re
import threading

import pytest
from django.db import connection
from django.utils import timezone

from tests.builders import PASSWORD, make_member, make_user, make_workspace
from workspaces import people
from workspaces.models import AuditEvent, Invitation, Membership, Role, User

pytestmark = pytest.mark.django_db(transaction=True)
NEW = {"email": "dora@example.com", "name": "Dora", "password": "a long enough one"}


@pytest.fixture
def space(db):
    return make_workspace("support")


@pytest.fixture
def wadmin(space):
    user = make_user("wadmin@example.com")
    make_member(space, user, Role.ADMIN)
    return user


def invite(client, **fields):
    """The path of a new invitation's link."""
    answer = client.post("/w/support/members/invite/", {"role": "member", **fields})
    assert answer.status_code == 200, answer.content.decode()
    return re.search(
        r'id="invitation-link">http://[^/]+(/invitations/[^<]+)<', answer.content.decode()
    )[1]


def role_of(email):
    return Membership.objects.get(user__email=email).role


def test_a_link_makes_an_account_and_lets_it_in_once(client, client_for, space, wadmin):
    client.force_login(wadmin)
    link = invite(client, role="viewer")
    assert "token" not in str(list(Invitation.objects.values())).replace("token_hash", "")
    visitor = client_for(None)
    page = visitor.get(link).content.decode()
    assert "wadmin@example.com invites you, as Viewer." in page
    answer = visitor.post(link, NEW)
    assert (answer.status_code, answer["location"]) == (303, "/w/support/")
    assert visitor.get("/w/support/").status_code == 200
    assert role_of("dora@example.com") == Role.VIEWER
    assert client_for(None).get(link).status_code == 404
    late = client_for(None).post(link, {**NEW, "email": "eve@example.com"})
    assert late.status_code == 404
    assert not User.objects.filter(email="eve@example.com").exists()
    actions = set(AuditEvent.objects.values_list("action", flat=True))
    assert {"invitation.create", "invitation.accept", "user.create"} <= actions


def test_who_is_signed_in_joins_with_one_press(client, client_for, space, wadmin):
    client.force_login(wadmin)
    link = invite(client)
    bob = make_user("bob@example.com")
    answer = client_for(bob).post(link)
    assert answer.status_code == 303
    assert role_of("bob@example.com") == Role.MEMBER


def test_an_invitation_for_an_address_is_for_nobody_else(
    client, client_for, space, wadmin, mailoutbox
):
    client.force_login(wadmin)
    link = invite(client, email="Dora@Example.com")
    eve = make_user("eve@example.com")
    answer = client_for(eve).post(link)
    assert answer.status_code == 422
    assert "for another address" in answer.content.decode()
    # What a visitor types beside the address that was invited doesn't count.
    answer = client_for(None).post(link, {**NEW, "email": "eve2@example.com"})
    assert answer.status_code == 303
    assert role_of("dora@example.com") == Role.MEMBER
    assert not User.objects.filter(email="eve2@example.com").exists()
    assert mailoutbox == []


def test_an_address_with_an_account_has_to_sign_in_first(client, client_for, space, wadmin):
    client.force_login(wadmin)
    make_user("dora@example.com")
    link = invite(client)
    answer = client_for(None).post(link, NEW)
    assert answer.status_code == 422
    assert "Sign in, then open the link again." in answer.content.decode()
    assert not Membership.objects.filter(user__email="dora@example.com").exists()
    bound = invite(client, email="dora@example.com")
    page = client_for(None).get(bound).content.decode()
    assert f"/accounts/login/?next={bound}" in page.replace("%2F", "/")


@pytest.mark.parametrize("way", ["revoked", "ended"])
def test_a_link_that_was_taken_back_or_has_ended_lets_nobody_in(
    client, client_for, space, wadmin, way
):
    client.force_login(wadmin)
    link = invite(client)
    one = Invitation.objects.get()
    if way == "revoked":
        assert client.post(f"/w/support/members/invitations/{one.pk}/revoke/").status_code == 303
    else:
        Invitation.objects.update(expires_at=timezone.now() - dt.timedelta(seconds=1))
    assert client_for(None).get(link).status_code == 404
    assert client_for(None).post(link, NEW).status_code == 404
    assert not User.objects.filter(email="dora@example.com").exists()


def test_of_many_who_open_a_link_at_once_one_gets_in(space, wadmin):
    _invitation, link = people.invite(wadmin, space, role=Role.MEMBER)
    token = link.rstrip("/").rpartition("/")[2]
    barrier, results = threading.Barrier(6), []

    def run(number):
        barrier.wait()
        try:
            people.accept(token, user=None, email=f"n{number}@example.com", password=PASSWORD)
            results.append("in")
        except people.InvitationRefused:
            results.append("refused")
        finally:
            connection.close()

    threads = [threading.Thread(target=run, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["in", *["refused"] * 5]
    assert Membership.objects.filter(workspace=space).count() == 2


@pytest.mark.parametrize("fields", [{"password": "short"}, {"email": "no"}, {"password": ""}])
def test_a_form_that_is_wrong_uses_nothing_up(client, client_for, space, wadmin, fields):
    client.force_login(wadmin)
    link = invite(client)
    answer = client_for(None).post(link, {**NEW, **fields})
    assert answer.status_code == 422
    assert Invitation.objects.get().is_open


def test_the_last_admin_stays(client, client_for, space, wadmin):
    client.force_login(wadmin)
    mine = Membership.objects.get()
    for path, data in (("leave/", {}), (f"{mine.pk}/role/", {"role": "viewer"})):
        answer = client.post(f"/w/support/members/{path}", data)
        assert answer.status_code == 409
        assert "A workspace needs an admin." in answer.content.decode()
    assert role_of("wadmin@example.com") == Role.ADMIN
    carol = make_user("carol@example.com")
    make_member(space, carol, Role.ADMIN)
    assert client.post("/w/support/members/leave/").status_code == 303
    assert client.get("/w/support/").status_code == 404
    alice = make_user("alice@example.com", is_superuser=True)
    last = Membership.objects.get()
    assert client_for(alice).post(f"/w/support/members/{last.pk}/remove/").status_code == 303
    assert Membership.objects.count() == 0


def test_two_admins_who_step_down_at_once_leave_one(space, wadmin):
    carol = make_user("carol@example.com")
    make_member(space, carol, Role.ADMIN)
    barrier = threading.Barrier(2)

    def run(user):
        barrier.wait()
        try:
            people.remove(user, space, Membership.objects.get(user=user).pk)
        except Exception:
            pass
        finally:
            connection.close()

    threads = [threading.Thread(target=run, args=(user,)) for user in (wadmin, carol)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Membership.objects.filter(role=Role.ADMIN).count() == 1


def test_roles_change_and_members_go(client, space, wadmin):
    client.force_login(wadmin)
    bob = make_member(space, make_user("bob@example.com"))
    assert client.post(f"/w/support/members/{bob.pk}/role/", {"role": "admin"}).status_code == 303
    assert role_of("bob@example.com") == Role.ADMIN
    assert client.post(f"/w/support/members/{bob.pk}/role/", {"role": "king"}).status_code == 422
    assert client.post(f"/w/support/members/{bob.pk}/remove/").status_code == 303
    assert not Membership.objects.filter(user__email="bob@example.com").exists()
    changed = AuditEvent.objects.get(action="membership.update")
    assert (changed.target_label, changed.details["before"]) == ("bob@example.com", "member")


def test_the_page_takes_the_same_queries_for_any_number(
    client, space, wadmin, django_assert_max_num_queries
):
    client.force_login(wadmin)
    for number in range(30):
        make_member(space, make_user(f"m{number}@example.com"))
        people.invite(wadmin, space, role=Role.MEMBER)
    with django_assert_max_num_queries(9):
        page = client.get("/w/support/members/").content.decode()
    assert page.count('<tr id="member-') == 31
    assert page.count('<tr id="invitation-') == 30


def test_a_member_is_found_among_many(client, space, wadmin):
    client.force_login(wadmin)
    where = f"/w/{space.slug}/members/"
    assert 'role="search"' not in client.get(where).text  # a few are seen at a glance
    people = [User(email=f"p{n:03}@example.com", name=f"Person {n}") for n in range(240)]
    User.objects.bulk_create(people)
    Membership.objects.bulk_create(Membership(workspace=space, user=one) for one in people)
    html = client.get(where).text
    assert 'role="search"' in html
    # Far pages are near: the first, the last, and those around this one.
    assert 'href="?page=5" aria-label="Page 5">5</a>' in html
    html = client.get(f"{where}?q=PERSON+23").text
    listed = re.findall(r'<span class="row-title">(.*?)</span>', html)
    assert listed == ["Person 23", *(f"Person {n}" for n in range(230, 240))]
    html = client.get(f"{where}?q=person&page=3").text
    assert 'href="?q=person&amp;page=2"' in html
    assert "Nobody found" in client.get(f"{where}?q=nobody").text
    answer = client.get(f"{where}?q={'x' * 201}")
    assert answer.status_code == 422
    assert "200" in answer.text


def test_a_mail_goes_out_where_mail_is_set_up(client, space, wadmin, settings, mailoutbox):
    settings.MAIL_IS_SET_UP = True
    client.force_login(wadmin)
    link = invite(client, email="dora@example.com")
    (mail,) = mailoutbox
    assert mail.to == ["dora@example.com"]
    assert link in mail.body
    assert "wadmin@example.com invites you to the workspace Support" in mail.body
