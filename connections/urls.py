from django.urls import path

from connections import (
    views,
    views_access,
    views_alerts,
    views_deleting,
    views_health,
    views_transfer,
)

app_name = "connections"
urlpatterns = [
    path("", views.connection_list, name="list"),
    path("new/", views.connection_create, name="create"),
    path("validate/", views.connection_validate_many, name="validate_many"),
    path("import/", views_transfer.connection_import, name="import"),
    path("import/<uuid:event>/", views_transfer.import_result, name="import_result"),
    path("export/", views_transfer.connection_export, name="export"),
    path("deleted/", views_deleting.connection_deleted, name="deleted"),
    path("alerts/", views_alerts.alert_settings, name="alerts"),
    path("alerts/me/", views_alerts.alerts_to_me, name="alerts_to_me"),
    path("alerts/test/", views_alerts.alerts_test, name="alerts_test"),
    path("status/", views_health.connection_status, name="status"),
    path("<str:slug>/", views.connection_detail, name="detail"),
    path("<str:slug>/row/", views.connection_row, name="row"),
    path("<str:slug>/health/", views_health.connection_health, name="health"),
    path("<str:slug>/edit/", views.connection_edit, name="edit"),
    path("<str:slug>/sign-in/", views.connection_sign_in, name="sign_in"),
    path("<str:slug>/sign-in/finish/", views.connection_sign_in_finish, name="sign_in_finish"),
    path("<str:slug>/sign-in/cancel/", views.connection_sign_in_cancel, name="sign_in_cancel"),
    path("<str:slug>/sign-out/", views.connection_sign_out, name="sign_out"),
    path("<str:slug>/validate/", views.connection_validate, name="validate"),
    path("<str:slug>/models/", views.connection_refresh_models, name="refresh_models"),
    path("<str:slug>/default/", views.connection_set_default, name="default"),
    path("<str:slug>/mid-stream/", views.connection_set_mid_stream, name="mid_stream"),
    path("<str:slug>/enable/", views.connection_enable, name="enable"),
    path("<str:slug>/order/", views.connection_order, name="order"),
    path("<str:slug>/delete/", views_deleting.connection_delete, name="delete"),
    path("<str:slug>/restore/", views_deleting.connection_restore, name="restore"),
    path("<str:slug>/access/", views_access.connection_access, name="access"),
    path("<str:slug>/access/<str:workspace>/", views_access.connection_grant, name="grant"),
    path(
        "<str:slug>/delete/confirm/",
        views_deleting.connection_confirm_delete,
        name="confirm_delete",
    ),
]
