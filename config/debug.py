"""What the error pages of PATCHBAY_DEBUG show: where something broke, never with which values."""

from __future__ import annotations

import re
from collections.abc import Iterable
from types import FrameType
from typing import Any

from django.http import HttpRequest
from django.views.debug import SafeExceptionReporterFilter


class NoValues(SafeExceptionReporterFilter):
    """Django's filter does nothing while DEBUG is on. Here a form may hold a connection's key, a
    frame its opened secret, and an address of Redis its password, so none of them is shown."""

    hidden_settings = re.compile(
        f"{SafeExceptionReporterFilter.hidden_settings.pattern}|(REDIS|BROKER)_URL|LOCATION", re.I
    )

    def is_active(self, request: HttpRequest | None) -> bool:
        return True

    def get_post_parameters(self, request: HttpRequest | None) -> dict[str, str]:
        return dict.fromkeys(request.POST if request else (), self.cleansed_substitute)

    def get_traceback_frame_variables(
        self, request: HttpRequest | None, tb_frame: FrameType
    ) -> Iterable[tuple[str, Any]]:
        return ()
