"""Pages go out packed, and nothing else does."""

import gzip

import pytest
from django.http import HttpResponse, StreamingHttpResponse
from django.test import RequestFactory

from config.middleware import Compressed

TEXT = "a page " * 200


def answer(response, accepts="gzip, br"):
    request = RequestFactory().get("/", headers={"accept-encoding": accepts})
    return Compressed(lambda request: response)(request)


def test_a_page_is_packed_for_who_takes_it():
    packed = answer(HttpResponse(TEXT))
    assert gzip.decompress(packed.content).decode() == TEXT
    assert packed.headers["Content-Encoding"] == "gzip"
    assert packed.headers["Content-Length"] == str(len(packed.content))
    assert packed.headers["Vary"] == "Accept-Encoding"
    assert len(packed.content) < len(TEXT) / 5


def test_its_length_tells_nothing():
    assert len({len(answer(HttpResponse(TEXT)).content) for _number in range(50)}) > 10


def test_who_takes_no_gzip_gets_the_page_as_it_is():
    plain = answer(HttpResponse(TEXT), accepts="br")
    assert plain.content.decode() == TEXT
    assert "Content-Encoding" not in plain.headers
    assert plain.headers["Vary"] == "Accept-Encoding"


@pytest.mark.parametrize(
    "response",
    [
        StreamingHttpResponse([TEXT]),
        HttpResponse(TEXT, content_type="text/event-stream"),
        HttpResponse(TEXT, content_type="image/png"),
        HttpResponse("short"),
    ],
    ids=["stream", "events", "image", "short"],
)
def test_streams_images_and_short_answers_are_left_alone(response):
    assert "Content-Encoding" not in answer(response).headers


@pytest.mark.django_db
def test_the_product_packs_its_pages(client):
    page = client.get("/accounts/login/", headers={"accept-encoding": "gzip"})
    assert b"</html>" in gzip.decompress(page.content)
