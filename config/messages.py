from django.conf import settings
from django.contrib.messages.storage.cookie import CookieStorage


class HostCookieStorage(CookieStorage):
    """What to tell a person next, in a cookie alone: Django's default would put long texts into the
    session, whose row the next GET would then change."""

    cookie_name = settings.MESSAGE_COOKIE_NAME
