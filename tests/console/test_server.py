"""Who may see the pages, and what every answer carries."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from console.run_data.run import Run
from console.web.server import application, is_loopback

Client = TestClient[web.Request, web.Application]


@pytest.fixture
async def serve(made_run: Path) -> AsyncIterator[Callable[[str | None], Awaitable[Client]]]:
    clients: list[Client] = []

    async def start(token: str | None) -> Client:
        run = Run.open(made_run)
        run.index.update()
        clients.append(TestClient(TestServer(application(run, token))))
        await clients[-1].start_server()
        return clients[-1]

    yield start
    for client in clients:
        await client.close()


async def test_beyond_loopback_nothing_is_shown_without_the_token(
    serve: Callable[[str | None], Awaitable[Client]],
) -> None:
    client = await serve("secret")
    for path in (
        "/",
        "/episodes",
        "/raw?id=g3/2",
        "/nope",
        "/static/console.js",
        "/?token=wrong",
        "/?token=s%C3%A9cret",
    ):
        answer = await client.get(path, headers={"Cookie": "longhaul_console=guess"})
        assert answer.status == 401
        assert "g3" not in await answer.text()
    answer = await client.get("/episodes?token=secret&q=x", allow_redirects=False)
    assert (answer.status, answer.headers["Location"]) == (303, "/episodes?q=x")
    cookie = answer.headers["Set-Cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
    assert (await client.get("/episodes")).status == 200  # the cookie is kept


async def test_a_name_that_was_made_to_lead_to_loopback_is_refused(
    serve: Callable[[str | None], Awaitable[Client]],
) -> None:
    client = await serve(None)
    assert (await client.get("/", headers={"Host": "evil.example:80"})).status == 403
    for host in ("127.0.0.1:99", "localhost", "[::1]:8"):
        assert (await client.get("/", headers={"Host": host})).status == 200


async def test_every_answer_forbids_what_no_page_needs(serve: Callable[[str | None], Awaitable[Client]]) -> None:
    client = await serve(None)
    for path in ("/", "/nope", "/raw?id=hostile-script&part=1", "/static/console.js", "/episodes?page=x"):
        answer = await client.get(path)
        policy = answer.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
        assert "unsafe" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
    answer = await client.get("/raw?id=hostile-script&part=1")
    assert answer.content_type == "text/plain"
    for part in ("9999", "-1", "x", "../settings.json"):
        assert (await client.get("/raw", params={"id": "g3/2", "part": part})).status == 404


async def test_a_part_is_given_whole_and_as_it_was(serve: Callable[[str | None], Awaitable[Client]]) -> None:
    client = await serve(None)
    assert await (await client.get("/raw?id=hostile-long&part=2")).text() == "x" * 1_000_000
    page = await (await client.get("/episode?id=hostile-long")).text()
    assert "980,000 characters more" in page
    assert len(page) < 1_000_000


@pytest.mark.parametrize(
    ("host", "inside"),
    [
        *((host, True) for host in ("127.0.0.1", "127.8.0.1", "::1", "localhost")),
        *((host, False) for host in ("0.0.0.0", "10.0.0.1", "localhost.evil.example", "")),
    ],
)
def test_what_is_loopback(host: str, inside: bool) -> None:
    assert is_loopback(host) is inside
