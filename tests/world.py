"""Two workspaces with people of every role and a session of every kind: for tests that try who may
do what to which object."""

from __future__ import annotations

import datetime as dt
import hashlib
import io
import uuid
from dataclasses import dataclass, field

from django.apps import apps
from django.core.files.base import ContentFile
from django.db import models, transaction
from django.utils import timezone
from PIL import Image

from connections.models import Alert, AlertOptOut, AlertSettings, Budget, Connection, ProbeResult
from sessions.models import Attachment, ChatSession, Message, ToolServer, Turn
from tests.builders import give_access, make_connection, make_member, make_user, make_workspace
from workspaces import audit
from workspaces.models import AuditEvent, Installation, Invitation, Role, User, Workspace
from workspaces.vault import Plain


@dataclass
class Talk:
    """A session with what belongs to it."""

    chat: ChatSession
    turn: Turn
    said: Message
    queued: Message
    attachment: Attachment


@dataclass
class World:
    """“Support” with bob's private and his shared session, and “Sales”, which is charlie's."""

    support: Workspace
    sales: Workspace
    connection: Connection
    imported: AuditEvent
    people: dict[str, User | None] = field(default_factory=dict)
    private: Talk = None  # type: ignore[assignment]
    shared: Talk = None  # type: ignore[assignment]
    foreign: Talk = None  # type: ignore[assignment]
    left: Talk = None  # type: ignore[assignment]
    server: ToolServer = None  # type: ignore[assignment]
    invitation: Invitation = None  # type: ignore[assignment]
    foreign_invitation: Invitation = None  # type: ignore[assignment]
    foreign_server: ToolServer = None  # type: ignore[assignment]


PEOPLE = ("anonymous", "switched off", "charlie", "viewer", "colleague", "owner", "wadmin", "alice")


def make_world() -> World:
    support, sales = make_workspace("support"), make_workspace("sales")
    Installation.objects.create(id=1)
    connection = make_connection("local", is_default=True, supports_images=True)
    make_connection("gone", deleted_at=timezone.now())
    ProbeResult.objects.create(connection=connection, trigger="button")
    Alert.objects.create(connection=connection, state="recovered")
    AlertSettings.objects.create(id=1)
    Budget.objects.create(connection=connection, month=timezone.now().date(), soft_cost=5)
    with transaction.atomic():
        imported = audit.record(
            "command", "connection.import", connection, new=1, connections={"local": "new"}
        )
    world = World(support, sales, connection, imported)
    give_access(support, connection)
    roles = {
        "switched off": Role.ADMIN,
        "viewer": Role.VIEWER,
        "colleague": Role.MEMBER,
        "owner": Role.MEMBER,
        "wadmin": Role.ADMIN,
    }
    world.people["anonymous"] = None
    for name, role in roles.items():
        world.people[name] = make_user(f"{name.replace(' ', '-')}@example.com")
        make_member(support, world.people[name], role)
    world.people["charlie"] = make_user("charlie@example.com")
    make_member(sales, world.people["charlie"], Role.ADMIN)
    world.people["alice"] = make_user("alice@example.com", is_superuser=True)
    AlertOptOut.objects.create(user=world.people["wadmin"])
    owner, charlie = world.people["owner"], world.people["charlie"]
    world.private = make_talk(support, owner, connection)
    world.shared = make_talk(support, owner, connection, shared=True)
    world.foreign = make_talk(sales, charlie, connection, shared=True)
    world.left = make_talk(support, make_user("left@example.com"), connection)
    world.server, world.foreign_server = make_tool_server(support), make_tool_server(sales)
    world.invitation, world.foreign_invitation = make_invitation(support), make_invitation(sales)
    with transaction.atomic():
        audit.record(owner, "session.create", world.private.chat, workspace_id=support.pk)
    return world


def make_talk(
    workspace: Workspace, owner: User, connection: Connection, *, shared: bool = False
) -> Talk:
    """A locked session: a turn that was stopped, an image, and a message that waits in a queue
    that stands still."""
    chat = ChatSession.objects.create(
        workspace=workspace,
        owner=owner,
        shared=shared,
        connection=connection,
        locked_at=timezone.now(),
        model="small",
        title="About the invoice",
        queue_paused="auth",
    )
    turn = Turn.objects.create(
        chat=chat, number=1, state=Turn.State.STOPPED, model="small", started_by=owner
    )
    said = Message.objects.create(
        chat=chat, seq=1, role="user", author=owner, text="hello", turn=turn, delivery="sent"
    )
    Message.objects.create(
        chat=chat, seq=2, role="assistant", text="a reply", turn=turn, step=1, delivery="sent"
    )
    queued = Message.objects.create(
        chat=chat, seq=3, place=3, role="user", author=owner, text="later", delivery="queued"
    )
    attachment = Attachment(
        message=said, media_type="image/png", name="image-1.png", width=2, height=2, size=0
    )
    attachment.file.save("image-1.png", ContentFile(png()), save=False)
    attachment.save()
    return Talk(chat, turn, said, queued, attachment)


TOKEN = "token-of-the-invitation-to-"


def make_invitation(workspace: Workspace) -> Invitation:
    """An open one for nobody in particular; its link ends in `TOKEN` and the workspace's slug."""
    token = hashlib.sha256(f"{TOKEN}{workspace.slug}".encode()).hexdigest()
    return Invitation.objects.create(
        workspace=workspace, token_hash=token, expires_at=timezone.now() + dt.timedelta(days=1)
    )


def make_tool_server(workspace: Workspace) -> ToolServer:
    """A server with headers, on a name that leads nowhere."""
    url = "https://tools.example.com/mcp"
    server = ToolServer(workspace=workspace, name="Shop", prefix="shop", url=url)
    server.binding, server.header_names = server.origin, ["X-Key"]
    server.headers = Plain('{"X-Key": "a value of a header"}')
    server.tools = [{"name": "search", "title": "Search", "description": "Finds articles."}]
    server.save()
    return server


def png(width: int = 2, height: int = 2, **options: object) -> bytes:
    """A small image."""
    out = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 30)).save(out, "PNG", **options)
    return out.getvalue()


def digest(*without: str, only: tuple[str, ...] = ()) -> str:
    """Of every row of every table, but for those of the models named by label."""
    sha = hashlib.sha256()
    for model in sorted(apps.get_models(), key=lambda model: model._meta.label):
        label = model._meta.label
        if label in without or (only and label not in only):
            continue
        rows = model._base_manager.order_by("pk").values_list(*_columns(model))
        sha.update(repr((label, [tuple(map(_plain, row)) for row in rows])).encode())
    return sha.hexdigest()


def _columns(model: type[models.Model]) -> list[str]:
    return [field.attname for field in model._meta.concrete_fields]


def _plain(value: object) -> object:
    return str(value) if isinstance(value, uuid.UUID) else value
