"""The admin site's pages for sessions: to look at. A session's lock, its messages and its turns
change through the product's own verbs only."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db import models
from django.http import HttpRequest
from django.utils.text import Truncator
from django.utils.translation import gettext_lazy as _

from connections.admin import ErrorFilter
from sessions.models import (
    Attachment,
    ChatSession,
    Flag,
    Message,
    SearchText,
    Seen,
    ToolServer,
    Turn,
    UsageDay,
)
from workspaces.admin import Audited, FewChoices, ReadOnly


@admin.register(ChatSession)
class ChatSessionAdmin(ReadOnly, admin.ModelAdmin):
    list_display = (
        *("__str__", "workspace", "owner", "connection", "locked", "model", "shared"),
        "updated_at",
    )
    list_filter = (
        "shared",
        ("locked_at", admin.EmptyFieldListFilter),
        ("workspace", FewChoices),
        ("connection", FewChoices),
    )
    list_prefetch = ("workspace", "owner", "connection")
    search_fields = ("title", "owner__email", "id")
    show_full_result_count = False
    fields = (
        *("title", "workspace", "owner", "shared", "read_only", "archived_at"),
        *("connection", "locked_at", "model"),
        *("created_at", "updated_at", "version", "queue_paused", "queue_not_before", "failures"),
    )

    @admin.display(boolean=True, description=_("Locked"), ordering="locked_at")
    def locked(self, chat: ChatSession) -> bool:
        return chat.is_locked


@admin.register(Turn)
class TurnAdmin(ReadOnly, admin.ModelAdmin):
    list_display = (
        *("chat", "number", "state", "model", "step", "error_kind", "started_by"),
        *("input_tokens", "output_tokens", "created_at", "ended_at"),
    )
    list_display_links = ("chat", "number")
    list_filter = (
        "state",
        ErrorFilter,
        ("chat__workspace", FewChoices),
        ("chat__connection", FewChoices),
    )
    list_prefetch = ("chat", "started_by")
    search_fields = ("chat__title", "chat__id", "model")
    ordering = ("-created_at",)
    show_full_result_count = False
    fields = (
        *("chat", "number", "state", "model", "started_by", "created_at", "started_at"),
        *("ended_at", "step", "claims", "request_sent", "lease_until", "stop_requested_at"),
        *("error_kind", "error_detail", "retry_after", "left_out_before", "input_tokens"),
        *("output_tokens", "cache_read_tokens", "cache_write_tokens", "context_tokens", "cost"),
    )


@admin.register(Message)
class MessageAdmin(ReadOnly, admin.ModelAdmin):
    list_display = ("chat", "seq", "role", "delivery", "author", "beginning", "created_at")
    list_display_links = ("chat", "seq")
    list_filter = (
        *("role", "delivery", "is_complete", "created_at"),
        ("chat__workspace", FewChoices),
    )
    list_prefetch = ("chat", "author")
    search_fields = ("text", "chat__title", "chat__id")
    ordering = ("-created_at",)
    show_full_result_count = False
    fields = (
        *("chat", "seq", "role", "author", "delivery", "place", "turn", "step", "is_complete"),
        *("text", "created_at"),
    )

    @admin.display(description=_("Text"))
    def beginning(self, message: Message) -> str:
        return Truncator(message.text).chars(80)


@admin.register(Attachment)
class AttachmentAdmin(ReadOnly, admin.ModelAdmin):
    list_display = ("name", "message", "media_type", "width", "height", "size")
    list_filter = ("media_type",)
    search_fields = ("name", "message__chat__title")
    fields = ("message", "position", "name", "media_type", "width", "height", "size")

    def get_queryset(self, request: HttpRequest) -> models.QuerySet:
        return super().get_queryset(request).select_related("message__chat")


@admin.register(ToolServer)
class ToolServerAdmin(Audited, ReadOnly, admin.ModelAdmin):
    """Changed on the workspace's own page, since headers go with it; can be deleted here. Nothing
    of the headers but their names is loaded."""

    list_display = (
        *("name", "workspace", "prefix", "url", "enabled", "last_error", "last_error_at"),
        "created_by",
    )
    list_filter = ("enabled", ("workspace", FewChoices))
    list_select_related = ("workspace", "created_by")
    search_fields = ("name", "prefix", "url")
    fields = (
        *("workspace", "name", "prefix", "url", "enabled", "header_names", "binding"),
        *("allowed_tools", "tools", "listed_at", "last_error", "last_error_detail"),
        *("last_error_at", "created_by", "created_at"),
    )

    def get_queryset(self, request: HttpRequest) -> models.QuerySet:
        return super().get_queryset(request).defer("headers")

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return admin.ModelAdmin.has_delete_permission(self, request, obj)

    def audit_context(self, server: ToolServer) -> dict[str, Any]:
        return {"workspace_id": server.workspace_id, "host": server.origin}


@admin.register(UsageDay)
class UsageDayAdmin(ReadOnly, admin.ModelAdmin):
    list_display = (
        *("day", "workspace_label", "connection_label", "model", "person_label"),
        *("turns", "input_tokens", "output_tokens", "cost"),
    )
    list_filter = ("day",)
    search_fields = ("workspace_label", "connection_label", "person_label", "model")
    show_full_result_count = False
    fields = (
        *("day", "workspace_label", "connection_label", "person_label", "model", "turns"),
        *("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens"),
        *("cost", "unpriced", "covered"),
    )


@admin.register(Flag)
class FlagAdmin(ReadOnly, admin.ModelAdmin):
    list_display = ("chat", "user")
    list_select_related = ("chat", "user")
    search_fields = ("chat__title", "user__email")
    show_full_result_count = False
    fields = ("chat", "user")


@admin.register(Seen)
class SeenAdmin(ReadOnly, admin.ModelAdmin):
    list_display = ("chat", "user", "number")
    list_select_related = ("chat", "user")
    search_fields = ("chat__title", "user__email")
    show_full_result_count = False
    fields = ("chat", "user", "number")


@admin.register(SearchText)
class SearchTextAdmin(ReadOnly, admin.ModelAdmin):
    list_display = ("chat", "is_title")
    list_select_related = ("chat",)
    search_fields = ("chat__title",)
    show_full_result_count = False
    fields = ("chat", "message", "text")

    @admin.display(boolean=True, description=_("Title"))
    def is_title(self, text: SearchText) -> bool:
        return text.message_id is None
