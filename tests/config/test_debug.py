"""The error pages of PATCHBAY_DEBUG."""

from __future__ import annotations

import sys

import pytest
from django.test import RequestFactory
from django.views.debug import ExceptionReporter

CANARY = "-".join(["canary", "of", "a", "value"])  # in no line of source as a whole


@pytest.fixture
def page(settings):
    settings.DEBUG = True
    settings.REDIS_URL = settings.CELERY_BROKER_URL = f"redis://:{CANARY}@localhost/0"
    settings.CACHES = {"default": {"LOCATION": f"redis://:{CANARY}@localhost/0"}}
    request = RequestFactory().post("/connections/new/", {"name": "x", "api_key": CANARY})
    opened = {"api_key": CANARY}
    try:
        raise ValueError("what broke") if opened else KeyError
    except ValueError:
        return ExceptionReporter(request, *sys.exc_info()).get_traceback_html()


def test_they_say_what_broke_and_where(page):
    assert "what broke" in page
    assert "test_debug.py" in page


def test_they_show_no_value_of_a_form_a_variable_or_a_setting(page):
    assert CANARY not in page
