"""What is refused to a person, with a sentence for the page."""

from __future__ import annotations


class Refused(Exception):
    """The request can't be done now; the text is for the person. `kind` is a short name."""

    def __init__(self, kind: str, sentence: str) -> None:
        super().__init__(sentence)
        self.kind = kind
        self.sentence = sentence


class Locked(Refused):
    """The session's connection is locked."""


class TooMany(Refused):
    """The person does too much at once; `retry_after` is in seconds."""

    def __init__(self, sentence: str, retry_after: int) -> None:
        super().__init__("too_many", sentence)
        self.retry_after = retry_after
