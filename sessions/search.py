"""Search over the titles and texts of sessions: by any three letters in a row, in every script.

A worker takes in what changed, seconds after a turn's end (`take_in`); people wait for no index.
One function asks (`find`): SQLite by FTS5 with trigrams, PostgreSQL by LIKE, which its trigram
index serves. Fewer than three letters (two make a word in Chinese) are looked for without an index,
in the newest sessions alone.
"""

from __future__ import annotations

import uuid

from django.db import connection as database
from django.db import transaction
from django.db.models import Exists, OuterRef, Q, QuerySet

from sessions.models import ChatSession, Message, SearchText, Turn

MOST_FOUND = 500  # texts; the newest
MOST_SCANNED = 300  # sessions, for a query too short for the index
AROUND = 60  # characters of an excerpt on either side
FTS = "agent_sessions_search_fts"


def find(chats: QuerySet[ChatSession], query: str) -> dict[uuid.UUID, int]:
    """Of these sessions those with the text: session id → id of the newest text that has it. One
    query; two for a short one."""
    query = " ".join(query.replace("\0", "").split()).lower()
    texts = SearchText.objects.order_by("-pk")
    if len(query) < 3:
        newest = list(chats.order_by("-updated_at").values_list("pk", flat=True)[:MOST_SCANNED])
        texts = texts.filter(chat__in=newest, text__contains=query)
    elif database.vendor == "sqlite":
        return _find_by_fts(chats, '"' + query.replace('"', '""') + '"')
    else:
        texts = texts.filter(text__contains=query, chat__in=chats.order_by().values("pk"))
    found: dict[uuid.UUID, int] = {}
    for chat_id, pk in texts.values_list("chat_id", "pk")[:MOST_FOUND]:
        found.setdefault(chat_id, pk)
    return found


def _find_by_fts(chats: QuerySet[ChatSession], phrase: str) -> dict[uuid.UUID, int]:
    """The newest first, from the index itself, which ends with the last that is wanted: a word that
    stands in every text would else be gathered from all of them."""
    where, values = chats.order_by().values("pk").query.sql_with_params()
    statement = (
        f"SELECT found.chat_id, found.id FROM {FTS} "  # noqa: S608
        f"CROSS JOIN {SearchText._meta.db_table} found ON found.id = {FTS}.rowid "
        f"WHERE {FTS} MATCH %s AND found.chat_id IN ({where}) "
        f"ORDER BY {FTS}.rowid DESC LIMIT {MOST_FOUND}"
    )
    found: dict[uuid.UUID, int] = {}
    with database.cursor() as cursor:
        cursor.execute(statement, [phrase, *values])
        for chat_id, pk in cursor.fetchall():
            found.setdefault(uuid.UUID(chat_id), pk)
    return found


def find_titles(
    chats: QuerySet[ChatSession], words: list[str], limit: int
) -> QuerySet[ChatSession]:
    """Of these sessions, in their order, those whose title has all the words. One query, which
    reads every title: there are a hundred times fewer than texts. What the index doesn't know yet
    is found by the title itself."""
    titles = SearchText.objects.filter(message=None)
    fresh = Q(search_due=True)
    for word in words:
        titles = titles.filter(text__contains=word.lower())
        fresh &= Q(title__icontains=word)
    return chats.filter(Q(pk__in=titles.values("chat")) | fresh)[:limit]


def excerpt(text: str, query: str) -> tuple[str, str, str]:
    """What stands before, at, and after the first place where `text` has the query; one line."""
    text, query = " ".join(text.split()), " ".join(query.split())
    at = text.lower().find(query.lower())
    if at < 0:
        return (text[: 2 * AROUND], "", "")
    end = at + len(query)
    before = text[max(0, at - AROUND) : at]
    after = text[end : end + AROUND]
    return (
        ("…" if at > AROUND else "") + before,
        text[at:end],
        after + ("…" if end + AROUND < len(text) else ""),
    )


def take_in(limit: int = 20) -> int:
    """Takes the texts of up to `limit` changed sessions in; how many they were. Messages come in
    when their turn has ended: their text no longer changes then."""
    active = Turn.objects.filter(chat=OuterRef("pk"), state__among=Turn.ACTIVE)
    waiting = ChatSession.objects.filter(~Exists(active), search_due=True)
    due = list(waiting.values_list("pk", flat=True)[:limit])
    for pk in due:
        _take_in(pk)
    return len(due)


@transaction.atomic
def _take_in(chat_id: uuid.UUID) -> None:
    chats = ChatSession.objects.select_for_update(of=("self",))
    chat = chats.filter(pk=chat_id, search_due=True).first()
    if chat is None:
        return
    title = SearchText.objects.filter(chat=chat, message=None).first()
    if title is None and chat.title:
        SearchText.objects.create(chat=chat, text=_searched(chat.title))
    elif title is not None and title.text != _searched(chat.title):
        title.text = _searched(chat.title)
        title.save(update_fields=["text"])
    fresh = (
        Message.objects.filter(chat=chat, turn__isnull=False, search_text=None)
        .exclude(text="")
        .exclude(turn__state__among=Turn.ACTIVE)
        .order_by("seq")
    )
    SearchText.objects.bulk_create(
        (SearchText(chat=chat, message=one, text=_searched(one.text)) for one in fresh),
        batch_size=200,
    )
    chat.search_due = False
    chat.save(update_fields=["search_due"])


def _searched(text: str) -> str:
    """In lower case (here, as a database's locale may know no other letters than English ones), and
    in one line, as the query is."""
    return " ".join(text.split()).lower()
