"""Static files are answered before Django, as browsers and caches expect."""

from __future__ import annotations

import gzip

import httpx
import pytest

from config.static import StaticFiles

CSS = b"body { color: red }\n" * 50


async def django(scope, receive, send):
    await send({"type": "http.response.start", "status": 404, "headers": []})
    await send({"type": "http.response.body", "body": b"django"})


@pytest.fixture
async def client(tmp_path):
    (tmp_path / "css").mkdir()
    for name in ("base.css", "base.0123456789ab.css"):
        (tmp_path / "css" / name).write_bytes(CSS)
        (tmp_path / "css" / f"{name}.gz").write_bytes(gzip.compress(CSS))
    (tmp_path / "icon.svg").write_text("<svg/>")
    app = StaticFiles(django, root=tmp_path, url="/static/")
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        client.headers["Accept-Encoding"] = "identity"
        yield client


async def test_a_hashed_name_may_be_kept_for_ever_and_another_for_a_minute(client):
    hashed = await client.get("/static/css/base.0123456789ab.css")
    assert hashed.headers["cache-control"].endswith("immutable")
    plain = await client.get("/static/css/base.css")
    assert plain.headers["cache-control"] == "max-age=60, public"
    assert hashed.content == plain.content == CSS
    assert plain.headers["content-type"] == 'text/css; charset="utf-8"'


async def test_the_compressed_form_is_sent_to_those_who_take_it(client):
    answer = await client.get("/static/css/base.css", headers={"Accept-Encoding": "gzip, br"})
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.headers["vary"] == "Accept-Encoding"
    assert int(answer.headers["content-length"]) < len(CSS)
    assert answer.content == CSS


async def test_head_tells_the_size_without_the_file(client):
    answer = await client.head("/static/css/base.css")
    assert int(answer.headers["content-length"]) == len(CSS)
    assert answer.content == b""


async def test_a_file_the_browser_has_is_not_sent_again(client):
    tag = (await client.get("/static/css/base.css")).headers["etag"]
    answer = await client.get("/static/css/base.css", headers={"If-None-Match": tag})
    assert (answer.status_code, answer.content) == (304, b"")


async def test_a_part_of_a_file_can_be_asked_for(client):
    answer = await client.get("/static/css/base.css", headers={"Range": "bytes=5-9"})
    assert (answer.status_code, answer.content) == (206, CSS[5:10])


async def test_other_methods_are_refused(client):
    answer = await client.post("/static/css/base.css")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    "path",
    ["/static/none.css", "/static/", "/static/../secret", "/static/%2e%2e/secret", "/other"],
)
async def test_everything_else_goes_to_django(client, path):
    answer = await client.get(path)
    assert (answer.status_code, answer.content) == (404, b"django")


async def test_an_svg_opened_by_itself_may_run_nothing(client):
    for method in ("GET", "POST"):
        headers = (await client.request(method, "/static/icon.svg")).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"


async def test_a_folder_that_is_not_there_is_no_error(tmp_path):
    app = StaticFiles(django, root=tmp_path / "none", url="/static/")
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        assert (await client.get("/static/x")).content == b"django"
