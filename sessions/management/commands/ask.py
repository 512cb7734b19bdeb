"""One turn from the command line, through the same machine as a browser's."""

from __future__ import annotations

import time
import uuid
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import transaction

from connections.models import Connection
from connections.sentences import sentence
from sessions import choosing, sending, turns
from sessions.models import ChatSession, Message, Turn
from sessions.refusals import Refused
from sessions.worker import Crew
from workspaces import audit
from workspaces.models import Role, User, Workspace
from workspaces.permissions import Access, role_in
from workspaces.runtime import get_runtime

_NO_SESSION = "There is no such session in this workspace."


class Command(BaseCommand):
    help = "Asks a model and prints its reply; runs the turn in this process."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("text", help="the message")
        parser.add_argument("--workspace", required=True, metavar="SLUG")
        parser.add_argument("--connection", metavar="SLUG", help="until it is locked")
        parser.add_argument("--session", type=uuid.UUID, metavar="UUID", help="go on in this one")
        parser.add_argument(
            "--user", metavar="EMAIL", help="who asks; else the session's owner, or the first admin"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        workspace = Workspace.objects.filter(slug=options["workspace"]).first()
        if workspace is None:
            raise CommandError(f"There is no workspace {options['workspace']!r}.")
        chat = self._named_chat(options["session"], workspace)
        user = self._user(options["user"], workspace, chat)
        connection = self._named_connection(options["connection"], workspace)
        try:
            # One transaction: a message that is refused leaves no session without messages.
            with transaction.atomic():
                chat = chat or self._new_chat(workspace, user)
                self._choose(chat, user, connection)
                sent = sending.send(chat.pk, user, options["text"], ring=False)
        except Refused as refusal:
            raise CommandError(refusal.sentence) from None
        # Runs this turn and takes nobody else's: the process ends with it.
        crew = Crew(get_runtime(), sweeps=False)
        try:
            message = self._answered(sent.message, crew)
        finally:
            crew.close(5)
            get_runtime().stop(5)
        turn = message.turn
        assert turn is not None
        if turn.state != Turn.State.DONE:
            used = message.chat.connection
            words = sentence(turn.error_kind, used.auth_type if used else "")
            why = words.text if turn.error_kind else turn.get_state_display()
            raise CommandError(str(why))
        replies = turn.messages.filter(role=Message.Role.ASSISTANT).order_by("step")
        self.stdout.write("\n\n".join(reply.text for reply in replies if reply.text))

    def _answered(self, message: Message, crew: Crew) -> Message:
        """Waits for the turn of the message: run here, or by a worker that was quicker. One that
        waits behind others waits with them, unless their queue stands still."""
        while True:
            message.refresh_from_db()
            if message.delivery == Message.Delivery.CANCELLED:
                raise CommandError("The message was cancelled.")
            if message.turn is None:
                message.chat.refresh_from_db()
                if message.chat.queue_paused:
                    why = sentence(message.chat.queue_paused)
                    raise CommandError(f"The session's queue is paused: {why.text}")
                turns.sweep()
            elif not message.turn.is_active:
                return message
            pending = Turn.objects.filter(chat=message.chat, state=Turn.State.PENDING).first()
            if pending is not None:
                crew.take(pending.pk)
            time.sleep(0.05 if message.turn else 1)

    def _user(self, email: str | None, workspace: Workspace, chat: ChatSession | None) -> User:
        """Who asks: the one named, else the session's owner, else the first admin; somebody who
        may send there."""
        people = User.objects.filter(is_active=True)
        if email is not None:
            user = people.filter(email=email.strip().lower()).first()
        elif chat is not None:
            user = people.filter(pk=chat.owner_id).first()
        else:
            user = people.filter(is_superuser=True).order_by("date_joined").first()
        role = role_in(user, workspace) if user else None
        if user is None or role is None:
            raise CommandError("There is no such person in this workspace.")
        if chat is not None and chat.owner_id != user.pk and not chat.shared:
            raise CommandError(_NO_SESSION)
        if not Access(workspace, user, role).has(Role.MEMBER):
            raise CommandError(f"{user.email} may only read in this workspace.")
        return user

    def _named_chat(self, session: uuid.UUID | None, workspace: Workspace) -> ChatSession | None:
        if session is None:
            return None
        chat = ChatSession.objects.filter(pk=session, workspace=workspace).first()
        if chat is None:
            raise CommandError(_NO_SESSION)
        return chat

    def _named_connection(self, slug: str | None, workspace: Workspace) -> Connection | None:
        if not slug:
            return None
        found = Connection.objects.visible_to(workspace).filter(slug=slug).first()
        if found is None:
            raise CommandError(f"There is no connection {slug!r} in this workspace.")
        return found

    def _new_chat(self, workspace: Workspace, user: User) -> ChatSession:
        chat = ChatSession.objects.create(workspace=workspace, owner=user)
        audit.record(user, "session.create", chat, workspace_id=workspace.pk, label=str(chat.pk))
        return chat

    def _choose(self, chat: ChatSession, user: User, connection: Connection | None) -> None:
        """The lock holds here too: another connection than the session's is refused, never
        left aside."""
        if connection is not None and not (chat.is_locked and chat.connection_id == connection.pk):
            choosing.choose_connection(chat.pk, user, connection)
