"""Text files that people send: read as text when they come in, and sent to the model as text.

A file is a part of its message, {"t": "text", "text": its content in a fence, "file": its name}, so
that it goes wherever the message goes: into the queue, a steered turn, another version.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.core.files.uploadedfile import UploadedFile
from django.utils.translation import gettext as _

MAX_BYTES = 512 * 1024
MAX_FILES = 10
MAX_NAME = 120
_CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1f]")
_FENCE = re.compile(r"`{3,}")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff`]")


class FileRefused(ValueError):
    """An upload can't be taken; the text is for the person."""


@dataclass(frozen=True, slots=True)
class ShownFile:
    name: str
    text: str

    @property
    def lines(self) -> int:
        return self.text.count("\n") + 1


def read_files(uploads: Iterable[UploadedFile]) -> list[dict[str, Any]]:
    """Each as a part of a message; raises `FileRefused` for the first that isn't text."""
    uploads = list(uploads)
    if len(uploads) > MAX_FILES:
        raise FileRefused(_("Send at most %(most)s files at once.") % {"most": MAX_FILES})
    return [_part(upload) for upload in uploads]


def _part(upload: UploadedFile) -> dict[str, Any]:
    name = _UNPRINTABLE.sub("", (upload.name or "").replace("\\", "/").rpartition("/")[2])
    name = name.strip()[:MAX_NAME] or _("file")
    if (upload.size or 0) > MAX_BYTES:
        raise FileRefused(
            _("“%(name)s” is larger than %(most)s KB.") % {"name": name, "most": MAX_BYTES // 1024}
        )
    data = upload.read()
    code = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data.decode(code)
    except UnicodeDecodeError:
        text = "\x00"
    if _CONTROLS.search(text.replace("\x1b", "")):
        raise FileRefused(
            _("“%(name)s” isn't a text file. A text must be in UTF-8.") % {"name": name}
        )
    text = text.replace("\r\n", "\n").replace("\x1b", "\ufffd").rstrip("\n")
    fence = "`" * max(3, *(len(found) + 1 for found in _FENCE.findall(text)), 3)
    return {"t": "text", "text": f"{name}:\n{fence}\n{text}\n{fence}", "file": name}


def files_of(parts: Sequence[Mapping[str, Any]]) -> list[ShownFile]:
    """The files of a message, as pages show them."""
    found = []
    for part in parts:
        if name := part.get("file"):
            lines = part["text"].split("\n")
            found.append(ShownFile(name, "\n".join(lines[2:-1])))
    return found
