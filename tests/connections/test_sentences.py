"""Every failure has a sentence of its own that says what to do."""

import pytest

from connections.providers.base import ErrorKind
from connections.sentences import Reason, sentence

KINDS = list(dict.fromkeys([*ErrorKind, *Reason]))  # one stands in both


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_says_what_happened_and_what_to_do(kind):
    words = sentence(kind)
    assert words.title and words.what and words.fix
    assert str(words.what).endswith(".")
    assert str(words.fix).endswith(".")
    assert words.tone in {"danger", "warning", "neutral"}
    assert words.text == sentence(kind.value).text


def test_no_two_kinds_share_a_sentence():
    assert len({sentence(kind).text for kind in KINDS}) == len(KINDS)
    assert len({str(sentence(kind).title) for kind in KINDS}) == len(KINDS)


def test_members_are_not_told_to_do_what_only_admins_can():
    for kind in KINDS:
        text = sentence(kind).member_text
        assert "Paste" not in text
        assert "base URL" not in text
        assert "PATCHBAY" not in text


@pytest.mark.parametrize("auth_type", ["iam_credentials", "environment", "oauth"])
@pytest.mark.parametrize("kind", [ErrorKind.AUTH, ErrorKind.FORBIDDEN])
def test_where_nobody_can_paste_a_key_no_sentence_asks_for_it(kind, auth_type):
    words = sentence(kind, auth_type)
    assert words != sentence(kind)
    assert "Paste" not in words.text
    assert "key" not in words.what
    for text in (words.text, words.member_text):
        assert text.endswith(".")
    assert "IAM" not in words.ask and "operator" not in words.ask


def test_who_has_no_key_is_told_that_one_is_wanted():
    words = sentence(ErrorKind.AUTH, "none")
    assert words != sentence(ErrorKind.AUTH)
    assert "wants a key" in words.what
    assert "Paste" not in words.text


def test_other_kinds_are_the_same_for_every_way_to_authenticate():
    assert sentence(ErrorKind.TIMEOUT, "iam_credentials") == sentence(ErrorKind.TIMEOUT)
    assert sentence(ErrorKind.AUTH, "api_key") == sentence(ErrorKind.AUTH)


def test_an_unknown_kind_of_a_newer_version_is_an_unexpected_fault():
    assert sentence("of tomorrow") == sentence(Reason.INTERNAL)
