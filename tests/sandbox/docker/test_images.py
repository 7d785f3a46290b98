"""Images of a daemon: logins, mirrors, rate limits, budgets, and images that somebody removed. The daemon is a real
HTTP server on a Unix socket that speaks its API."""

from __future__ import annotations

import asyncio
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
from sandbox.docker import images as images_of_a_daemon
from sandbox.docker.images import Images
from sandbox.docker.pulled import account_of
from sandbox.docker.registry import credentials, read_mirrors
from tests.waiting import until


class Daemon:
    """Has images, pulls what registries have, and limits pulls for a while."""

    def __init__(self, registries: dict[str, int], limited: int = 0) -> None:
        self.registries = registries  # name as it is pulled -> bytes
        self.there: dict[str, int] = {}
        self.limited = limited
        self.refusals: list[tuple[int, str]] = []  # of the next pulls, in turn: status and message
        self.cuts: list[str] = []  # of the next pulls, in turn: all that is said, and the image is not there
        self.busy: set[str] = set()  # used by somebody else
        self.may_pull = asyncio.Event()
        self.may_pull.set()
        self.pulls: list[str] = []
        self.logins: list[str] = []

    async def answer(self, request: web.Request) -> web.Response:
        path = request.path.partition("/images/")[2]
        if path == "create":
            query = request.query
            image = query["fromImage"] + (f":{query['tag']}" if query.get("tag") else "")
            self.pulls.append(image)
            self.logins.append(request.headers.get("X-Registry-Auth", ""))
            await self.may_pull.wait()
            if self.limited:
                self.limited -= 1
                said = {"message": "toomanyrequests: You have reached your pull rate limit"}
                return web.json_response(said, status=429)
            if self.refusals:
                status, message = self.refusals.pop(0)
                return web.json_response({"message": message}, status=status)
            if self.cuts:
                return web.Response(text=self.cuts.pop(0), content_type="application/json")
            if image not in self.registries:
                return web.json_response({"message": "manifest unknown"}, status=404)
            self.there[image.removeprefix("docker.io/")] = self.registries[image]
            return web.Response(text='{"status": "done"}\r\n', content_type="application/json")
        if path.endswith("/tag"):
            name = f"{request.query['repo']}:{request.query.get('tag', 'latest')}"
            self.there[name] = self.there[path.removesuffix("/tag")]
            return web.Response(status=201)
        if path.endswith("/json"):
            image = path.removesuffix("/json")
            if image in self.there:
                return web.json_response({"Id": image, "Size": self.there[image]})
        if request.method == "DELETE" and path in self.busy:
            return web.json_response({"message": "conflict: image is being used by running container"}, status=409)
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
    assert daemon.there.keys() == {"corner/shop:1", "corner/till:1"}, "each by its own name alone"


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


async def test_what_is_expected_is_pulled_one_by_one_before_it_is_needed(tmp_path: Path) -> None:
    daemon = Daemon({f"corner/{name}:1": 5 for name in "abcd"})
    daemon.may_pull.clear()
    async with images_of(daemon, tmp_path) as images:
        images.expect(["corner/a:1", "corner/b:1"])
        await until(lambda: daemon.pulls == ["corner/a:1"])
        needed = asyncio.create_task(images.ensure("corner/c:1"))
        await until(lambda: "corner/c:1" in daemon.pulls)  # which waits for no pull ahead of need
        joined = asyncio.create_task(images.ensure("corner/a:1"))
        images.expect(["corner/b:1", "corner/d:1"])
        daemon.may_pull.set()
        await asyncio.gather(needed, joined)
        await until(lambda: images.has("corner/b:1") and images.has("corner/d:1"))
    assert sorted(daemon.pulls) == [f"corner/{name}:1" for name in "abcd"], "each once"


async def test_what_cannot_be_had_ahead_of_need_is_left_to_whoever_needs_it(tmp_path: Path) -> None:
    daemon = Daemon({"corner/b:1": 5})
    async with images_of(daemon, tmp_path) as images:
        images.expect(["corner/a:1", "corner/b:1"])
        await until(lambda: images.has("corner/b:1"))
        assert not images.has("corner/a:1")
        images.expect(["corner/a:1", "corner/b:1"])
        await asyncio.sleep(0)
        assert daemon.pulls.count("corner/a:1") == 1, "not again and again"
        with pytest.raises(SandboxError) as caught:
            await images.ensure("corner/a:1")
    assert caught.value.kind == "no_image"


async def test_nothing_that_is_used_or_expected_goes_for_what_is_expected_later(tmp_path: Path) -> None:
    daemon = Daemon({f"corner/{name}:1": 40 for name in "abcde"})
    async with images_of(daemon, tmp_path, budget_bytes=100) as images:
        await images.ensure("corner/a:1")
        images.use("corner/a:1", 1)
        images.expect(["corner/b:1", "corner/c:1"])
        await until(lambda: images.has("corner/b:1"))
        await until(lambda: images._pulling_ahead is not None and images._pulling_ahead.done())
        assert sorted(daemon.there) == ["corner/a:1", "corner/b:1"], "a third one would not fit beside them"
        images.use("corner/a:1", -1)  # its task is over
        images.expect(["corner/b:1", "corner/c:1", "corner/d:1"])
        await until(lambda: images.has("corner/c:1"))
        await until(lambda: images._pulling_ahead is not None and images._pulling_ahead.done())
        assert sorted(daemon.there) == ["corner/b:1", "corner/c:1"]


@pytest.mark.parametrize("mirror", ["docker.io", "=m", "docker.io=https://m"])
def test_a_mirror_needs_two_names(mirror: str) -> None:
    with pytest.raises(ValueError, match="registry=mirror"):
        SandboxSettings(image_mirrors=[mirror])


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Failed pulls are tried again at once."""
    monkeypatch.setattr(images_of_a_daemon, "FIRST_BACKOFF_S", 0.0)


OTHERS_LIMITS = [
    "received unexpected HTTP status: 429 Too Many Requests",
    "error parsing HTTP 429 response body: invalid character '<' looking for beginning of value",
    "toomanyrequests: Rate exceeded",
    "toomanyrequests: retry-after: 2ms, allowed: 44000/minute",
]


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("said", OTHERS_LIMITS)
async def test_a_limit_is_waited_for_in_whatever_words_it_is_said(tmp_path: Path, said: str) -> None:
    daemon = Daemon({"corner/shop:1": 5})
    daemon.refusals = [(500, said)] * 6  # more than there are attempts
    async with images_of(daemon, tmp_path, limited_pause_s=0.001) as images:
        await images.ensure("corner/shop:1")
    assert len(daemon.pulls) == 7


async def test_one_registrys_limit_does_not_keep_others_waiting(tmp_path: Path) -> None:
    names = [f"corner/{name}:1" for name in "abc"]
    daemon = Daemon({"ghcr.io/corner/shop:1": 5})
    daemon.refusals = [(429, "toomanyrequests")] * len(names)
    async with images_of(daemon, tmp_path, limited_pause_s=600) as images:
        waiting = [asyncio.create_task(images.ensure(name)) for name in names]
        await until(lambda: not daemon.refusals)
        async with asyncio.timeout(60):
            await images.ensure("ghcr.io/corner/shop:1")
        assert not any(task.done() for task in waiting)
        await images.close()
        await asyncio.gather(*waiting, return_exceptions=True)


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("cut", ["", '{"status": "Pulling"}\r\n', '{"status": "Pulling"}\r\n{"sta'])
async def test_a_pull_that_breaks_off_is_made_again(tmp_path: Path, cut: str) -> None:
    daemon = Daemon({"corner/shop:1": 5})
    daemon.cuts = [cut]
    async with images_of(daemon, tmp_path) as images:
        await images.ensure("corner/shop:1")
        assert "corner/shop:1" in daemon.there
        daemon.cuts = [cut] * 9
        with pytest.raises(SandboxError, match=r"the pull (broke off|ended before)") as caught:
            await images.ensure("corner/shop:2")
        assert caught.value.kind == "image" and not images.has("corner/shop:2")


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize(
    ("status", "said", "kind", "num_pulls"),
    [
        (500, "unauthorized: incorrect username or password", "login", 1),
        (404, "pull access denied for x: denied: Your authorization token has expired. Reauthenticate", "login", 1),
        (500, "Head https://r/v2/x: no basic auth credentials", "login", 1),
        (404, "pull access denied for x, repository does not exist or may require 'docker login'", "no_image", 1),
        (400, "invalid reference format", "no_image", 1),
        (500, "received unexpected HTTP status: 503 Service Unavailable", "image", 4),
        (500, "write /var/lib/docker/tmp/x: no space left on device", "image", 4),
    ],
)
async def test_refusals_are_told_apart(tmp_path: Path, status: int, said: str, kind: str, num_pulls: int) -> None:
    daemon = Daemon({})
    daemon.refusals = [(status, said)] * 9
    async with images_of(daemon, tmp_path) as images:
        with pytest.raises(SandboxError) as caught:
            await images.ensure("ghcr.io/corner/shop:1")
    assert (caught.value.kind, len(daemon.pulls)) == (kind, num_pulls)
    assert said in str(caught.value)
    assert ("`docker login ghcr.io`" in str(caught.value)) == (kind == "login")
    assert ("sandbox.image_disk_gib" in str(caught.value)) == ("no space" in said)


async def test_what_is_said_in_the_middle_of_a_pull_counts_as_well(tmp_path: Path) -> None:
    daemon = Daemon({})
    daemon.cuts = ['{"errorDetail": {"message": "manifest unknown"}, "error": "manifest unknown"}\r\n']
    async with images_of(daemon, tmp_path) as images:
        with pytest.raises(SandboxError) as caught:
            await images.ensure("corner/shop:1")
    assert (caught.value.kind, len(daemon.pulls)) == ("no_image", 1)


@pytest.mark.usefixtures("soon")
async def test_a_full_disk_is_given_back_what_nothing_uses(tmp_path: Path) -> None:
    daemon = Daemon({f"corner/{name}:1": 40 for name in "abc"})
    async with images_of(daemon, tmp_path, budget_bytes=1000) as images:
        await images.ensure("corner/a:1")
        await images.ensure("corner/b:1")
        images.use("corner/b:1", 1)
        daemon.refusals = [(500, "no space left on device")]
        await images.ensure("corner/c:1")
    assert daemon.there.keys() == {"corner/b:1", "corner/c:1"}


async def test_what_another_process_uses_goes_once_it_does_not(tmp_path: Path) -> None:
    daemon = Daemon({f"corner/{name}:1": 40 for name in "abcd"})
    async with images_of(daemon, tmp_path, budget_bytes=100) as images:
        await images.ensure("corner/a:1")
        daemon.busy = {"corner/a:1"}
        await images.ensure("corner/b:1")
        await images.ensure("corner/c:1")
        assert daemon.there.keys() == {"corner/a:1", "corner/c:1"}
        daemon.busy = set()
        await images.ensure("corner/d:1")
        assert daemon.there.keys() == {"corner/c:1", "corner/d:1"}


async def test_an_image_that_is_about_to_be_started_stays(tmp_path: Path) -> None:
    daemon = Daemon({f"corner/{name}:1": 80 for name in "ab"})
    async with images_of(daemon, tmp_path, budget_bytes=100) as images:
        with images.in_use("corner/a:1"):
            await images.ensure("corner/a:1")
            await images.ensure("corner/b:1")
            assert "corner/a:1" in daemon.there, "though it was unused for longer, and there is no room for both"
        images.forget("corner/a:1")  # a start that failed for another reason: its room is still taken
        await images.make_room()
        assert len(daemon.there) == 1


async def test_the_budget_holds_behind_a_mirror(tmp_path: Path) -> None:
    daemon = Daemon({f"mirror.test/library/{name}:1": 40 for name in "abc"})
    mirrors = read_mirrors(["docker.io=mirror.test"])
    async with images_of(daemon, tmp_path, mirrors=mirrors, budget_bytes=100) as images:
        for name in "abc":
            await images.ensure(f"{name}:1")
    assert daemon.there.keys() == {"b:1", "c:1"}


async def test_a_digest_is_had_from_a_mirror_by_the_name_it_has_there(tmp_path: Path) -> None:
    digest = f"@sha256:{'0' * 64}"
    daemon = Daemon({f"mirror.test/corner/{name}{digest}": 40 for name in "abc"})
    mirrors = read_mirrors(["docker.io=mirror.test"])
    async with images_of(daemon, tmp_path, mirrors=mirrors, budget_bytes=100) as images:
        assert await images.ensure(f"corner/a{digest}") == f"mirror.test/corner/a{digest}"
    async with images_of(daemon, tmp_path, mirrors=mirrors, budget_bytes=100) as images:
        assert await images.ensure(f"corner/a{digest}") == f"mirror.test/corner/a{digest}"
        assert len(daemon.pulls) == 1, "another process finds it"
        await images.ensure(f"corner/b{digest}")
        await images.ensure(f"corner/c{digest}")
        images.use(f"corner/b{digest}", 0)
        assert len(daemon.there) == 3, "and removes what it pulled itself, no other"


async def test_the_budget_is_that_of_all_processes_of_a_run_also_of_those_that_died(tmp_path: Path) -> None:
    daemon = Daemon({f"corner/{name}:1": 40 for name in "abcd"})

    def process() -> contextlib.AbstractAsyncContextManager[Images]:
        return images_of(daemon, tmp_path, budget_bytes=100, pulled=account_of("unix:///d.sock", tmp_path / "images"))

    async with process() as died:
        await died.ensure("corner/a:1")
        await died.ensure("corner/b:1")
    async with process() as one, process() as other:
        await one.ensure("corner/a:1")
        one.use("corner/a:1", 1)
        one.use("corner/a:1", -1)
        await other.ensure("corner/c:1")
        assert daemon.there.keys() == {"corner/a:1", "corner/c:1"}
        daemon.busy = {"corner/c:1"}
        await one.ensure("corner/d:1")
        assert daemon.there.keys() == {"corner/c:1", "corner/d:1"}


@pytest.mark.parametrize("shared", [False, True])
def test_an_account_tells_what_was_unused_for_longest(tmp_path: Path, shared: bool) -> None:
    account = account_of("unix:///d.sock", tmp_path / "images" if shared else None)
    assert not account.sizes()
    for number, name in enumerate("abc"):
        account.add(name, number)
    account.touch("a")
    account.touch("x" * 500)
    account.drop("b")
    account.drop("b")
    assert list(account.sizes().items()) == [("c", 2), ("a", 0)]
    elsewhere = account_of("https://other", tmp_path / "images" if shared else None)
    assert not elsewhere.sizes()
