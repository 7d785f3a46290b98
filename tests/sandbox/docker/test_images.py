"""Images of a daemon: logins, mirrors, rate limits, budgets, and images that somebody removed. The daemon is a real
HTTP server on a Unix socket that speaks its API."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiodocker import Docker
from aiohttp import UnixConnector, web

from protocol.config import SandboxSettings
from protocol.errors import SandboxError
from sandbox.docker.images import Images
from sandbox.docker.registry import credentials, full_name, is_limited, names_to_try, read_mirrors


class Daemon:
    """Has images, pulls what registries have, and limits pulls for a while."""

    def __init__(self, registries: dict[str, int], limited: int = 0) -> None:
        self.registries = registries  # name as it is pulled -> bytes
        self.there: dict[str, int] = {}
        self.limited = limited
        self.pulls: list[str] = []
        self.logins: list[str] = []

    async def answer(self, request: web.Request) -> web.Response:
        path = request.path.partition("/images/")[2]
        if path == "create":
            query = request.query
            image = query["fromImage"] + (f":{query['tag']}" if query.get("tag") else "")
            self.pulls.append(image)
            self.logins.append(request.headers.get("X-Registry-Auth", ""))
            if self.limited:
                self.limited -= 1
                said = {"message": "toomanyrequests: You have reached your pull rate limit"}
                return web.json_response(said, status=429)
            if image not in self.registries:
                return web.json_response({"message": "manifest unknown"}, status=404)
            self.there[image.removeprefix("docker.io/")] = self.registries[image]
            return web.Response(text='{"status": "done"}\r\n', content_type="application/json")
        if path.endswith("/tag"):
            self.there[f"{request.query['repo']}:{request.query['tag']}"] = self.there[path.removesuffix("/tag")]
            return web.Response(status=201)
        if path.endswith("/json"):
            image = path.removesuffix("/json")
            if image in self.there:
                return web.json_response({"Id": image, "Size": self.there[image]})
        if request.method == "DELETE" and path in self.there:
            del self.there[path]
            return web.json_response([])
        if request.path.endswith("version"):
            return web.json_response({"ApiVersion": "1.41"})
        return web.json_response({"message": "no such image"}, status=404)


@contextlib.asynccontextmanager
async def images_of(daemon: Daemon, tmp_path: Path, **options: object) -> AsyncIterator[Images]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", daemon.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.UnixSite(runner, str(tmp_path / "d.sock")).start()
    connector = UnixConnector(str(tmp_path / "d.sock"))
    client = Docker(url="unix://localhost", connector=connector)
    try:
        yield Images("unix:///d.sock", lambda: client, **options)
    finally:
        await client.close()
        await connector.close()
        await runner.cleanup()


@pytest.fixture(autouse=True)
def nobody_is_logged_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    return tmp_path / "config.json"


async def test_an_image_that_no_registry_has_is_the_tasks_fault(tmp_path: Path) -> None:
    async with images_of(Daemon({}), tmp_path) as images:
        with pytest.raises(SandboxError, match="manifest unknown") as caught:
            await images.ensure("corner/shop:1")
    assert caught.value.kind == "no_image"


async def test_a_rate_limit_is_named_and_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    daemon = Daemon({"corner/shop:1": 5}, limited=2)
    async with images_of(daemon, tmp_path, limited_pause_s=0.05) as images:
        with caplog.at_level(logging.WARNING):
            await images.ensure("corner/shop:1")
    assert len(daemon.pulls) == 3
    assert "docker.io limits pulls" in caplog.text and "docker login" in caplog.text


@pytest.fixture
def logged_in(nobody_is_logged_in: Path) -> None:
    token = base64.b64encode(b"me:s3cret:x").decode()
    auths = {"https://index.docker.io/v1/": {"auth": token}, "ghcr.io": {"identitytoken": "t"}}
    nobody_is_logged_in.write_text(json.dumps({"auths": auths}))


@pytest.mark.usefixtures("logged_in")
async def test_a_login_is_honoured(tmp_path: Path) -> None:
    assert credentials("corner/shop:1") == {"username": "me", "password": "s3cret:x"}
    assert credentials("ghcr.io/a/b") == {"identitytoken": "t"}
    assert credentials("quay.io/a/b") is None
    daemon = Daemon({"docker.io/corner/shop:1": 5})
    async with images_of(daemon, tmp_path) as images:
        await images.ensure("corner/shop:1")
    sent = json.loads(base64.urlsafe_b64decode(daemon.logins[0]))
    assert (sent["username"], sent["password"]) == ("me", "s3cret:x")


def test_a_login_kept_by_a_helper_is_asked_of_it(
    tmp_path: Path, nobody_is_logged_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper = tmp_path / "docker-credential-corner"
    helper.write_text('#!/bin/sh\nread server\necho "{\\"Username\\": \\"of $server\\", \\"Secret\\": \\"s\\"}"\n')
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    nobody_is_logged_in.write_text(json.dumps({"credHelpers": {"ghcr.io": "corner"}}))
    assert credentials("ghcr.io/a/b") == {"username": "of ghcr.io", "password": "s"}
    nobody_is_logged_in.write_text(json.dumps({"credsStore": "missing"}))
    assert credentials("ghcr.io/a/b") is None


@pytest.mark.parametrize("content", ["", "[]", '{"auths": []}', '{"auths": {"ghcr.io": {"auth": "%%"}}}', "\x00"])
def test_a_damaged_login_file_is_no_login(nobody_is_logged_in: Path, content: str) -> None:
    nobody_is_logged_in.write_text(content)
    assert credentials("ghcr.io/a/b") is None


async def test_a_mirror_is_asked_first_and_the_registry_where_it_has_nothing(tmp_path: Path) -> None:
    daemon = Daemon({"mirror.test/hub/corner/shop:1": 5, "corner/till:1": 5})
    mirrors = read_mirrors(["docker.io=mirror.test/hub"])
    async with images_of(daemon, tmp_path, mirrors=mirrors) as images:
        await images.ensure("corner/shop:1")
        await images.ensure("corner/till:1")
    assert daemon.pulls == ["mirror.test/hub/corner/shop:1", "mirror.test/hub/corner/till:1", "corner/till:1"]
    assert {"corner/shop:1", "corner/till:1"} <= daemon.there.keys()


async def test_images_out_of_use_go_within_the_budget_and_come_back(tmp_path: Path) -> None:
    daemon = Daemon({f"corner/shop:{number}": 40 for number in range(4)})
    daemon.there["corner/mine:1"] = 1000  # not pulled by us: it stays
    async with images_of(daemon, tmp_path, budget_bytes=100) as images:
        await images.ensure("corner/mine:1")
        for number in range(2):
            await images.ensure(f"corner/shop:{number}")
        images.use("corner/shop:0", 1)
        await images.ensure("corner/shop:2")
        assert daemon.there.keys() == {"corner/mine:1", "corner/shop:0", "corner/shop:2"}
        await images.ensure("corner/shop:1")
        images.use("corner/shop:1", 1)
        assert daemon.there.keys() == {"corner/mine:1", "corner/shop:0", "corner/shop:1"}
        await images.ensure("corner/shop:3")
    assert daemon.pulls.count("corner/shop:1") == 2


async def test_an_image_that_somebody_removed_is_pulled_again(tmp_path: Path) -> None:
    daemon = Daemon({"corner/shop:1": 5})
    async with images_of(daemon, tmp_path) as images:
        await images.ensure("corner/shop:1")
        daemon.there.clear()
        images.forget("corner/shop:1")  # as a start does that is told so
        await images.ensure("corner/shop:1")
    assert len(daemon.pulls) == 2


def test_names() -> None:
    assert full_name("python:3") == "docker.io/library/python:3"
    assert full_name("corner/shop") == "docker.io/corner/shop"
    assert full_name("localhost:5000/a:1") == "localhost:5000/a:1"
    assert list(names_to_try("ghcr.io/a/b:1", {"docker.io": "m"})) == ["ghcr.io/a/b:1"]
    assert is_limited(500, "toomanyrequests: limit") and not is_limited(500, "boom")


@pytest.mark.parametrize("mirror", ["docker.io", "=m", "docker.io=https://m"])
def test_a_mirror_needs_two_names(mirror: str) -> None:
    with pytest.raises(ValueError, match="registry=mirror"):
        SandboxSettings(image_mirrors=[mirror])
