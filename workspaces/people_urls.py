from django.urls import path

from workspaces import people_views as views

app_name = "members"
_here = "w/<str:workspace>/members/"
urlpatterns = [
    path(_here, views.member_list, name="list"),
    path(_here + "invite/", views.member_invite, name="invite"),
    path(_here + "leave/", views.member_leave, name="leave"),
    path(_here + "invitations/<uuid:invitation>/revoke/", views.member_revoke, name="revoke"),
    path(_here + "<uuid:membership>/role/", views.member_role, name="role"),
    path(_here + "<uuid:membership>/remove/", views.member_remove, name="remove"),
    path(_here + "people/<uuid:person>/transfer/", views.member_transfer, name="transfer"),
    path("invitations/<str:token>/", views.invitation_accept, name="accept"),
]
