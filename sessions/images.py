"""Images that people send: decoded and checked when they come in, never trusted by name or type."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Sized
from dataclasses import dataclass

from django.core.files.uploadedfile import UploadedFile
from django.utils.translation import gettext as _
from PIL import Image, UnidentifiedImageError

MAX_BYTES = 5 * 1024 * 1024
MAX_PIXELS = 40_000_000
MAX_SIDE = 8_000
MAX_IMAGES = 10
_TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "GIF": "image/gif"}
_SUFFIXES = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp", "image/gif": "gif"}


class ImageRefused(ValueError):
    """An upload can't be taken; the text is for the person."""


@dataclass(frozen=True, slots=True)
class CheckedImage:
    """An image that was decoded whole; `name` is ours."""

    media_type: str
    data: bytes
    width: int
    height: int
    name: str


def check_images(uploads: Iterable[UploadedFile]) -> list[CheckedImage]:
    """Decodes every upload; raises `ImageRefused` with a sentence for the first that isn't one."""
    uploads = list(uploads)
    check_count(uploads)
    return [_check(number, upload) for number, upload in enumerate(uploads, 1)]


def check_count(images: Sized) -> None:
    if len(images) > MAX_IMAGES:
        raise ImageRefused(_("Send at most %(most)s images at once.") % {"most": MAX_IMAGES})


def _check(number: int, upload: UploadedFile) -> CheckedImage:
    if (upload.size or 0) > MAX_BYTES:
        raise ImageRefused(
            _("Image %(number)s is larger than %(most)s MB.")
            % {"number": number, "most": MAX_BYTES // 2**20}
        )
    data = upload.read()
    unreadable = ImageRefused(
        _("Image %(number)s can't be read as PNG, JPEG, WebP or GIF.") % {"number": number}
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=list(_TYPES)) as image:
                width, height = image.size
                if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
                    raise ImageRefused(
                        _("Image %(number)s has too many pixels (%(width)s × %(height)s).")
                        % {"number": number, "width": width, "height": height}
                    )
                media_type = _TYPES[image.format or ""]
                image.load()
    except ImageRefused:
        raise
    except (UnidentifiedImageError, OSError, ValueError, KeyError, SyntaxError, MemoryError):
        raise unreadable from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise unreadable from None
    return CheckedImage(media_type, data, width, height, f"image-{number}.{_SUFFIXES[media_type]}")
