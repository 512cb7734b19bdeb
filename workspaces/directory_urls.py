from django.urls import path

from workspaces import directory_views as views

app_name = "people"
_one = "<uuid:person>/"
urlpatterns = [
    path("", views.person_list, name="list"),
    path("invite/", views.person_invite, name="invite"),
    path(_one, views.person_detail, name="detail"),
    path(_one + "workspaces/add/", views.person_add, name="add"),
    path(_one + "admin/", views.person_admin, name="admin"),
    path(_one + "deactivate/", views.person_deactivate, name="deactivate"),
    path(_one + "activate/", views.person_activate, name="activate"),
    path(_one + "devices/sign-out/", views.person_sign_out, name="sign_out"),
    path(_one + "second-factor/", views.person_second_factor, name="second_factor"),
    path(_one + "sign-in-link/", views.person_sign_in_link, name="sign_in_link"),
    path(_one + "delete/", views.person_delete, name="delete"),
    path(_one + "progress/", views.person_progress, name="progress"),
]
