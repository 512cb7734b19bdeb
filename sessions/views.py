"""The pages of sessions. Every page works without JavaScript: a plain post is redirected (303);
htmx gets the fragment that changed."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from django.db import transaction
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.functional import SimpleLazyObject
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from connections.models import Connection
from sessions import choosing, limits, queueing, sending, titles, turns, versions
from sessions.access import may_hand_over, readable_chat, writable_chat
from sessions.continuing import continue_on
from sessions.images import CheckedImage, ImageRefused, check_count, check_images
from sessions.models import Attachment, ChatSession, Message
from sessions.refusals import Refused, TooMany
from sessions.textfiles import FileRefused, read_files
from sessions.texts import clean_text
from sessions.transcript import build
from workspaces import audit
from workspaces.models import Role
from workspaces.permissions import workspace_for
from workspaces.place import remember
from workspaces.statements import Select


@require_POST
def chat_create(request: HttpRequest, workspace: str) -> HttpResponse:
    access = workspace_for(request, workspace, Role.MEMBER)
    with transaction.atomic():
        chat = ChatSession.objects.create(workspace=access.workspace, owner=access.user)
        audit.record(
            access.user,
            "session.create",
            chat,
            workspace_id=access.workspace.pk,
            label=str(chat.pk),
        )
    return back_to(chat)


@require_safe
def chat_detail(request: HttpRequest, workspace: str, chat_id: uuid.UUID) -> HttpResponse:
    chat = readable_chat(request, workspace, chat_id)
    before = number_of(request.GET.get("before", ""))
    # Without JavaScript the page reloads itself to follow a reply, unless one reads or writes.
    context = {**_context(chat, before=before), "still": bool(before) or "still" in request.GET}
    if not before:
        context["transcript"].mark_unseen()
    page = render(request, "sessions/detail.html", context)
    return remember(request, page, chat.workspace)


@require_safe
def chat_turns(request: HttpRequest, workspace: str, chat_id: uuid.UUID) -> HttpResponse:
    """What open pages ask for when something changed: the turns from `since` on, what waits, the
    state; or with `before` the page of older turns."""
    chat = readable_chat(request, workspace, chat_id)
    since, before = (
        number_of(request.GET.get("since", "")),
        number_of(request.GET.get("before", "")),
    )
    context = _context(chat, since=since, before=before)
    template = "sessions/detail.html#older" if before else "sessions/detail.html#update"
    return render(request, template, {**context, "since": since})


def number_of(text: str) -> int:
    """A number of turns or the like; 0 for anything else."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 9 else 0


def _context(
    chat: ChatSession, *, since: int = 0, before: int = 0, draft: str = "", problem: str = ""
) -> dict[str, Any]:
    access = chat.access  # type: ignore[attr-defined]
    transcript = build(chat, access, since=since, before=before)
    return {
        "chat": chat,
        "access": access,
        "workspace": chat.workspace,
        "transcript": transcript,
        "draft": draft,
        "problem": problem,
        "client_key": uuid.uuid4().hex,
        "is_owner": chat.owner_id == access.user.pk,
        "may_hand_over": SimpleLazyObject(lambda: may_hand_over(chat)),
    }


def back_to(chat: ChatSession) -> HttpResponse:
    response = redirect(chat)
    response.status_code = 303
    return response


_AGAIN = Select(
    lambda chat_id: ChatSession.objects.select_related("workspace", "owner", "connection").filter(
        pk=chat_id
    )
)


def answer(
    request: HttpRequest,
    chat: ChatSession,
    *,
    draft: str = "",
    problem: str = "",
    status: int = 200,
) -> HttpResponse:
    """What changed, for htmx; for a plain form the page again: fetched anew, or here with the text
    that goes back to the composer."""
    access = chat.access  # type: ignore[attr-defined]
    fresh = _AGAIN.first(chat.pk)
    if fresh is None:
        raise Http404
    chat = fresh
    chat.access = access  # type: ignore[attr-defined]
    if request.htmx:
        since = number_of(request.POST.get("since", ""))
        context = _context(chat, since=since, draft=draft, problem=problem)
        return render(
            request, "sessions/detail.html#answer", {**context, "since": since}, status=status
        )
    if problem or draft:
        context = _context(chat, draft=draft, problem=problem)
        return render(request, "sessions/detail.html", context, status=status)
    return back_to(chat)


_STATUS = dict.fromkeys(
    (
        *("empty", "images", "too_large", "queued"),
        *("model", "connection", "thinking", "max_output"),
    ),
    422,
)


def refused(
    request: HttpRequest, chat: ChatSession, refusal: Refused, draft: str = ""
) -> HttpResponse:
    status = _STATUS.get(refusal.kind, 409)
    response = answer(request, chat, draft=draft, problem=refusal.sentence, status=status)
    return _says_when(response, refusal)


def _says_when(response: HttpResponse, refusal: Exception) -> HttpResponse:
    """Tells programs too when it is worth trying again, where it was too much at once."""
    if isinstance(refusal, TooMany):
        response.status_code = 429
        response.headers["Retry-After"] = str(refusal.retry_after)
    return response


@require_POST
def chat_send(request: HttpRequest, workspace: str, chat_id: uuid.UUID) -> HttpResponse:
    """Accepts a message: `text`, `client_key` (made here when left out), `images`, `files` (of
    text)."""
    chat = writable_chat(request, workspace, chat_id)
    text = request.POST.get("text", "")
    try:
        limits.count_send(request.user)
    except TooMany as refusal:
        return refused(request, chat, refusal, draft=text)
    try:
        images = check_images(request.FILES.getlist("images"))
        files = read_files(request.FILES.getlist("files"))
    except (ImageRefused, FileRefused) as refusal:
        return answer(request, chat, draft=text, problem=str(refusal), status=422)
    try:
        sending.send(
            chat.pk,
            request.user,
            text,
            client_key=request.POST.get("client_key", ""),
            images=images,
            files=files,
        )
    except Refused as refusal:
        return refused(request, chat, refusal, draft=text)
    return answer(request, chat)


@require_POST
def chat_stop(request: HttpRequest, workspace: str, chat_id: uuid.UUID) -> HttpResponse:
    chat = writable_chat(request, workspace, chat_id)
    typed = request.POST.get("text", "").strip()
    try:
        returned = turns.stop(chat.pk, request.user, queued=request.POST.get("queued", "return"))
    except Refused as refusal:
        return refused(request, chat, refusal, draft=typed)
    texts = [typed, *(message.text for message in returned)]
    return answer(request, chat, draft="\n\n".join(text for text in texts if text))


@require_POST
def chat_retry(request: HttpRequest, workspace: str, chat_id: uuid.UUID) -> HttpResponse:
    chat = writable_chat(request, workspace, chat_id)
    try:
        limits.count_send(request.user)
        turns.retry(chat.pk, request.user)
    except Refused as refusal:
        return refused(request, chat, refusal)
    return answer(request, chat)


@require_POST
def chat_regenerate(request: HttpRequest, workspace: str, chat_id: uuid.UUID) -> HttpResponse:
    """The last answer again, in a new session: `turn` is its number, `client_key` as for a send."""
    chat = writable_chat(request, workspace, chat_id)
    try:
        limits.count_send(request.user)
        new = versions.regenerate(
            chat.pk,
            request.user,
            number_of(request.POST.get("turn", "")),
            client_key=request.POST.get("client_key", ""),
        )
    except Refused as refusal:
        return refused(request, chat, refusal)
    return back_to(new)


@require_http_methods(["GET", "HEAD", "POST"])
def message_again(
    request: HttpRequest, workspace: str, chat_id: uuid.UUID, message_id: uuid.UUID
) -> HttpResponse:
    """A message's text in the composer, below what stood before it; POST sends it in a new session:
    as for a send, and `model`, and `keep`, the message's own images (their ids) and files (their
    names) that go along."""
    chat = writable_chat(request, workspace, chat_id)
    message = versions.first_message(chat, message_id)
    if message is None:
        raise Http404
    kept = list(message.attachments.all())
    kept_files = [part for part in message.parts if "file" in part]
    if request.method != "POST":
        return _again(request, chat, message, message.text, kept, kept_files)
    text = request.POST.get("text", "")
    chosen = set(request.POST.getlist("keep"))
    kept = [one for one in kept if str(one.pk) in chosen]
    kept_files = [part for part in kept_files if part["file"] in chosen]
    try:
        limits.count_send(request.user)
        images = [*_read(kept), *check_images(request.FILES.getlist("images"))]
        check_count(images)
        files = [*kept_files, *read_files(request.FILES.getlist("files"))]
        new = versions.send_edited(
            message,
            request.user,
            text,
            client_key=request.POST.get("client_key", ""),
            images=images,
            files=files,
            model=clean_text(request.POST.get("model", ""))[:200],
        )
    except (Refused, ImageRefused, FileRefused) as refusal:
        page = _again(request, chat, message, text, kept, kept_files, str(refusal))
        return _says_when(page, refusal)
    if request.htmx:
        return HttpResponse(headers={"HX-Redirect": new.get_absolute_url()})
    return back_to(new)


def _again(
    request: HttpRequest,
    chat: ChatSession,
    message: Message,
    text: str,
    kept: Sequence[Attachment],
    kept_files: Sequence[Mapping[str, Any]],
    problem: str = "",
) -> HttpResponse:
    """The page of `message_again`; a refusal says why and keeps what was written."""
    assert message.turn is not None
    context = _context(chat, before=message.turn.number, draft=text, problem=problem)
    context |= {"message": message, "kept": kept, "kept_files": kept_files}
    context["model"] = request.POST.get("model") or context["transcript"].model
    status = 422 if problem else 200
    if problem and request.htmx:
        context["oob"] = True
        return render(request, "sessions/detail.html#problem", context, status=status)
    return render(request, "sessions/again.html", context, status=status)


def _read(attachments: Iterable[Attachment]) -> list[CheckedImage]:
    """Images that were checked when they came in; those whose file is gone are left out."""
    found = []
    for one in attachments:
        with contextlib.suppress(OSError), one.file.open("rb") as file:
            size = (one.width, one.height)
            found.append(CheckedImage(one.media_type, file.read(), *size, one.name))
    return found


@require_POST
def chat_continue(request: HttpRequest, workspace: str, chat_id: uuid.UUID) -> HttpResponse:
    """A new session with the same transcript on another `connection` (a slug; left out: what the
    workspace would use now)."""
    chat = writable_chat(request, workspace, chat_id)
    slug = clean_text(request.POST.get("connection", ""))
    connection = None
    if slug:
        connection = Connection.objects.visible_to(chat.workspace).filter(slug=slug[:64]).first()
        if connection is None:
            raise Http404
    try:
        continued = continue_on(chat.pk, request.user, connection)
    except Refused as refusal:
        return refused(request, chat, refusal)
    return back_to(continued)


@require_POST
def chat_resume(request: HttpRequest, workspace: str, chat_id: uuid.UUID) -> HttpResponse:
    chat = writable_chat(request, workspace, chat_id)
    try:
        queueing.resume(chat.pk)
    except Refused as refusal:
        return refused(request, chat, refusal)
    return answer(request, chat)


@require_POST
def chat_connection(request: HttpRequest, workspace: str, chat_id: uuid.UUID) -> HttpResponse:
    """The choice before the first message: `connection` is a slug, or empty for the defaults."""
    chat = writable_chat(request, workspace, chat_id)
    slug = clean_text(request.POST.get("connection", ""))
    connection = None
    if "connection" not in request.POST and not chat.is_locked:
        # Only an empty one goes back to the defaults: a misspelt field doesn't undo a choice.
        refusal = Refused("connection", _("Choose a connection first."))
        return refused(request, chat, refusal)
    if slug:
        connection = Connection.objects.visible_to(chat.workspace).filter(slug=slug[:64]).first()
        if connection is None and not chat.is_locked:
            raise Http404
    try:
        choosing.choose_connection(chat.pk, request.user, connection)
    except Refused as refusal:
        return refused(request, chat, refusal)
    return answer(request, chat)


@require_POST
def chat_model(request: HttpRequest, workspace: str, chat_id: uuid.UUID) -> HttpResponse:
    chat = writable_chat(request, workspace, chat_id)
    try:
        choosing.choose_model(chat.pk, request.user, request.POST.get("model", "")[:200])
    except Refused as refusal:
        return refused(request, chat, refusal)
    return answer(request, chat)


@require_POST
def chat_options(request: HttpRequest, workspace: str, chat_id: uuid.UUID) -> HttpResponse:
    """`thinking` and `max_output`; what is left out stays as it is."""
    chat = writable_chat(request, workspace, chat_id)
    wanted = {
        name: clean_text(request.POST[name])
        for name in ("thinking", "max_output")
        if name in request.POST
    }
    try:
        choosing.choose_options(chat.pk, request.user, wanted)
    except Refused as refusal:
        return refused(request, chat, refusal)
    return answer(request, chat)


@require_POST
def chat_rename(request: HttpRequest, workspace: str, chat_id: uuid.UUID) -> HttpResponse:
    chat = writable_chat(request, workspace, chat_id)
    title = request.POST.get("title", "").strip()
    if title:
        titles.rename(chat.pk, title)
    return answer(request, chat)


@require_POST
def message_edit(
    request: HttpRequest, workspace: str, chat_id: uuid.UUID, message_id: uuid.UUID
) -> HttpResponse:
    return _on_waiting(
        request,
        workspace,
        chat_id,
        lambda chat: queueing.edit(chat, message_id, request.user, request.POST.get("text", "")),
    )


@require_POST
def message_cancel(
    request: HttpRequest, workspace: str, chat_id: uuid.UUID, message_id: uuid.UUID
) -> HttpResponse:
    return _on_waiting(request, workspace, chat_id, lambda chat: queueing.cancel(chat, message_id))


@require_POST
def message_promote(
    request: HttpRequest, workspace: str, chat_id: uuid.UUID, message_id: uuid.UUID
) -> HttpResponse:
    return _on_waiting(request, workspace, chat_id, lambda chat: queueing.promote(chat, message_id))


@require_POST
def message_move(
    request: HttpRequest, workspace: str, chat_id: uuid.UUID, message_id: uuid.UUID
) -> HttpResponse:
    """`direction` = earlier or later, or `before` = the id of the message to go before, or `after`
    = that of the last one, to go behind all."""
    earlier = request.POST.get("direction") != "later"
    before = request.POST.get("before", "" if "after" in request.POST else None)
    return _on_waiting(
        request,
        workspace,
        chat_id,
        lambda chat: queueing.move(chat, message_id, earlier=earlier, before=before),
    )


def _on_waiting(request: HttpRequest, workspace: str, chat_id: uuid.UUID, act: Any) -> HttpResponse:
    chat = writable_chat(request, workspace, chat_id)
    try:
        act(chat.pk)
    except Refused as refusal:
        return refused(request, chat, refusal)
    return answer(request, chat)


@require_safe
def attachment_file(
    request: HttpRequest, workspace: str, chat_id: uuid.UUID, attachment_id: uuid.UUID
) -> HttpResponse:
    """An image of a session: only for those who may read the session, never as a page.

    Read whole (5 MB at most): on ASGI Django would do so with any file, and warn.
    """
    chat = readable_chat(request, workspace, chat_id)
    attachment = get_object_or_404(Attachment, pk=attachment_id, message__chat=chat)
    try:
        with attachment.file.open("rb") as file:
            response = HttpResponse(file.read(), content_type=attachment.media_type)
    except OSError:
        raise Http404 from None
    name = f"{attachment.pk}{attachment.SUFFIX[attachment.media_type]}"
    response.headers["Content-Disposition"] = f'inline; filename="{name}"'
    response.headers["Content-Security-Policy"] = "default-src 'none'; sandbox"
    response.headers["Cache-Control"] = "private, max-age=3600"
    return response
