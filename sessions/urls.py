from django.urls import path

from sessions import views, views_keeping
from sessions.stream import chat_stream

app_name = "sessions"
_chat = "sessions/<uuid:chat_id>/"
_message = _chat + "messages/<uuid:message_id>/"
urlpatterns = [
    path("", views_keeping.chat_list, name="list"),
    path("sessions/new/", views.chat_create, name="create"),
    path(_chat, views.chat_detail, name="detail"),
    path(_chat + "stream/", chat_stream, name="stream"),
    path(_chat + "turns/", views.chat_turns, name="turns"),
    path(_chat + "send/", views.chat_send, name="send"),
    path(_chat + "stop/", views.chat_stop, name="stop"),
    path(_chat + "retry/", views.chat_retry, name="retry"),
    path(_chat + "continue/", views.chat_continue, name="continue"),
    path(_chat + "regenerate/", views.chat_regenerate, name="regenerate"),
    path(_chat + "resume/", views.chat_resume, name="resume"),
    path(_chat + "connection/", views.chat_connection, name="connection"),
    path(_chat + "model/", views.chat_model, name="model"),
    path(_chat + "options/", views.chat_options, name="options"),
    path(_chat + "share/", views_keeping.chat_share, name="share"),
    path(_chat + "flag/", views_keeping.chat_flag, name="flag"),
    path(_chat + "seen/", views_keeping.chat_seen, name="seen"),
    path(_chat + "archive/", views_keeping.chat_archive, name="archive"),
    path(_chat + "delete/", views_keeping.chat_delete, name="delete"),
    path(_chat + "transfer/", views_keeping.chat_transfer, name="transfer"),
    path(_chat + "export/", views_keeping.chat_export, name="export"),
    path(_chat + "rename/", views.chat_rename, name="rename"),
    path(_message + "edit/", views.message_edit, name="message_edit"),
    path(_message + "again/", views.message_again, name="message_again"),
    path(_message + "cancel/", views.message_cancel, name="message_cancel"),
    path(_message + "promote/", views.message_promote, name="message_promote"),
    path(_message + "move/", views.message_move, name="message_move"),
    path(_chat + "images/<uuid:attachment_id>/", views.attachment_file, name="attachment"),
]
