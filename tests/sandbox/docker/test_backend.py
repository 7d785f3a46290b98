"""What only the Docker backend has: cancelled starts, several daemons, shared pulls, other owners' containers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import ssl
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from aiodocker import DockerError
from aiohttp import web

from protocol.errors import ConfigError, SandboxError
from sandbox.base import Backend, SandboxSpec
from sandbox.docker import backend as backend_of_docker
from sandbox.docker import daemon, images
from sandbox.docker.backend import DockerBackend
from sandbox.docker.daemon import DockerHost, Failures
from sandbox.owners import Owner
from tests.waiting import until


@pytest.mark.docker
async def test_starts_cancelled_at_any_moment_leave_nothing(docker_backend: Backend, run_name: str) -> None:
    async with await docker_backend.create(SandboxSpec(run=run_name, lease="warm up")):
        pass
    for delay in (0.0, 0.01, 0.03, 0.06, 0.1, 0.15, 0.2):
        task = asyncio.create_task(docker_backend.create(SandboxSpec(run=run_name, lease=f"after {delay}")))
        await asyncio.sleep(delay)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await (await task).close()
    assert await docker_backend.purge(run_name) == 0


@pytest.mark.docker
async def test_a_daemon_that_does_not_see_our_files(run_name: str, source: Path, tmp_path: Path) -> None:
    """The guest, the tree and the binds are copied into the container."""
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "tool").write_text("hammer")
    backend = DockerBackend(run_name)
    if not (await backend.probe()).available:
        await backend.close()
        pytest.skip("no daemon answers")
    backend.hosts[0].shares_files = False
    binds = {str(tmp_path / "tools"): "/opt/tools"}
    spec = SandboxSpec(run=run_name, lease="remote", source=source, read_only_binds=binds)
    async with await backend.create(spec) as sandbox:
        assert (await sandbox.exec("cat pkg/code.py /opt/tools/tool", timeout=30)).text == "ANSWER = 41\nhammer"
    await backend.close()


@pytest.mark.docker
async def test_a_missing_image_is_named(docker_backend: Backend, run_name: str) -> None:
    with pytest.raises(SandboxError, match="no-such-image") as caught:
        await docker_backend.create(SandboxSpec(run=run_name, lease="x", image="localhost:1/no-such-image:1"))
    assert caught.value.kind == "image"


async def test_unusable_hosts_are_named(tmp_path: Path) -> None:
    for url, tls, expected in (
        ("tcp://127.0.0.1:2375", None, "expected unix:///path or https://host:port"),
        ("https://127.0.0.1:2376", None, "docker-tls-dir"),
        ("https://127.0.0.1:2376", tmp_path, "docker_tls_dir"),
        (f"unix://{tmp_path}/none.sock", None, "no daemon answers"),
    ):
        backend = DockerBackend("hosts", [url], tls)
        capabilities = await backend.probe()
        assert not capabilities.available and expected in capabilities.reason
        await backend.close()
    host = DockerHost("ssh://somewhere", None, 1)
    with pytest.raises(ConfigError, match="ssh://somewhere"):
        assert host.client
    await host.close()


class FakeDaemon:
    """Answers the few requests of an image pull, over a Unix socket, and counts them."""

    def __init__(self, failures: int) -> None:
        self.requests: Counter[str] = Counter()
        self._failures = failures

    async def serve(self, path: Path) -> web.AppRunner:
        """Start on a Unix socket; the caller cleans up."""
        runner = await self._runner()
        await web.UnixSite(runner, str(path)).start()
        return runner

    async def serve_tls(self, tls_dir: Path) -> tuple[web.AppRunner, int]:
        """Start on loopback, for clients whose certificate our authority signed; the caller cleans up."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(tls_dir / "ca.pem"))
        context.load_cert_chain(tls_dir / "cert.pem", tls_dir / "key.pem")
        context.verify_mode = ssl.CERT_REQUIRED
        runner = await self._runner()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        return runner, runner.addresses[0][1]

    async def _runner(self) -> web.AppRunner:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(app)
        await runner.setup()
        return runner

    async def _answer(self, request: web.Request) -> web.Response:
        kind = request.path.rsplit("/", 1)[-1]
        self.requests[kind] += 1
        if kind == "info":
            return web.json_response({"MemoryLimit": True})
        if kind == "version":
            return web.json_response({"ApiVersion": "1.41"})
        if kind == "create":
            await asyncio.sleep(0.1)
            if self.requests["create"] <= self._failures:
                return web.json_response({"message": "boom"}, status=500)
            return web.Response(text='{"status": "done"}\r\n', content_type="application/json")
        if kind == "json" and self.requests["create"] > self._failures:
            return web.json_response({"Size": 1})
        return web.json_response({"message": "no such image"}, status=404)


async def test_one_pull_however_many_ask_and_failures_are_tried_again(tmp_path: Path) -> None:
    daemon = FakeDaemon(failures=1)
    runner = await daemon.serve(tmp_path / "daemon.sock")
    host = DockerHost(f"unix://{tmp_path}/daemon.sock", None, 4)
    names = await asyncio.gather(*(host.ensure_image("registry/image:1") for _ in range(20)))
    assert set(names) == {"registry/image:1"} and host.images.has("registry/image:1")
    assert daemon.requests["create"] == 2
    await host.close()
    await runner.cleanup()


def make_certificates(directory: Path) -> None:
    """An authority that has signed itself, for 127.0.0.1."""
    subject = ["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"]
    new = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "1",
        *subject,
    ]
    files = ["-keyout", str(directory / "key.pem"), "-out", str(directory / "cert.pem")]
    subprocess.run([*new, *files], check=True, capture_output=True, timeout=60)
    shutil.copy(directory / "cert.pem", directory / "ca.pem")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make certificates with")
async def test_daemons_behind_tls(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for directory in (ours, theirs):
        directory.mkdir()
        make_certificates(directory)
    runner, port = await FakeDaemon(failures=0).serve_tls(ours)
    host = DockerHost(f"https://127.0.0.1:{port}", ours, 1)
    assert not host.shares_files and (await host.info())["MemoryLimit"]
    await host.close()
    stranger = DockerHost(f"https://127.0.0.1:{port}", theirs, 1)
    with pytest.raises(Failures):
        await stranger.info()
    await stranger.close()
    await runner.cleanup()


async def test_placement_prefers_the_daemon_that_is_well_and_has_the_image(tmp_path: Path) -> None:
    backend = DockerBackend("placement", [f"unix://{tmp_path}/{n}.sock" for n in range(3)])
    first, second, third = backend.hosts
    first.num_alive, second.num_alive, third.num_alive = 1, 5, 3
    assert backend.place("image") is first
    second.images.add("image")
    assert backend.place("image") is second
    second.failed()
    assert backend.place("image") is first
    first.failed()
    assert backend.place(None) is third
    third.failed()
    with pytest.raises(SandboxError, match="none of 3 Docker daemons"):
        backend.place(None)
    await backend.close()


async def test_a_daemon_that_gives_no_answer_is_left_alone_and_waited_for_where_there_is_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "FIRST_BACKOFF_S", 0.0)
    urls = [f"unix://{tmp_path}/{n}.sock" for n in range(2)]
    backend = DockerBackend("dead", urls, with_guest=False)
    first, second = backend.hosts
    first.images.add("corner/shop:1")  # where it would be placed, as often as it is not known to be unwell
    spec = SandboxSpec(run="dead", lease="x", image="corner/shop:1")
    for host in (first, second):
        with pytest.raises(SandboxError, match=f"{host.url} cannot start") as caught:
            await backend.create(spec)
        assert caught.value.kind == "start" and not host.is_well
    monkeypatch.setattr(daemon, "UNWELL_S", 0.05)
    for host in backend.hosts:
        host.failed()
    with pytest.raises(SandboxError) as caught:
        await backend.create(spec)
    assert caught.value.kind == "start", "it was tried, and not refused within the moment that a restart takes"
    await backend.close()


@pytest.mark.docker
async def test_only_the_dead_are_reaped(docker_backend: Backend, run_name: str) -> None:
    """A container as an owner that was killed would leave it, beside one of a living owner."""
    living = await docker_backend.create(SandboxSpec(run=run_name, lease="living"))
    dead = await docker_backend.create(SandboxSpec(run=run_name, lease="dead"))
    configuration = (await dead.container.show())["Config"]
    labels = configuration["Labels"] | {"longhaul.owner": Owner(run_name, os.getpid(), 1, 1).name}
    await dead.close()
    other = {"Image": configuration["Image"], "Cmd": ["sleep", "600"], "HostConfig": {"NetworkMode": "none"}}
    ours = await dead.host.client.containers.create(other | {"Labels": labels})
    elsewhere = await dead.host.client.containers.create(other | {"Labels": labels | {"longhaul.machine": "elsewhere"}})
    unlabelled = await dead.host.client.containers.create(other)
    for container in (ours, elsewhere, unlabelled):
        await container.start()
    assert await docker_backend.purge("") >= 1  # whatever else is dead on this host goes as well
    with pytest.raises(DockerError):
        await ours.show()
    assert (await living.exec("echo alive", timeout=20)).text == "alive\n"
    await elsewhere.show()
    await unlabelled.delete(force=True)
    assert await docker_backend.purge(run_name) == 1, "the living one: what another host made is that host's to remove"
    await elsewhere.show()
    await elsewhere.delete(force=True)
    await living.close()


@pytest.mark.docker
async def test_what_was_made_long_ago_and_never_ran_goes_whoever_made_it_and_what_runs_stays(
    docker_backend: Backend, run_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = f"{run_name}-of-others"
    living = await docker_backend.create(SandboxSpec(run=others, lease="living"))
    configuration = (await living.container.show())["Config"]
    labels = configuration["Labels"] | {"longhaul.machine": "elsewhere"}
    never_ran = await living.host.client.containers.create(
        {"Image": configuration["Image"], "Cmd": ["true"], "Labels": labels}
    )
    runs = await living.host.client.containers.create(
        {"Image": configuration["Image"], "Cmd": ["sleep", "600"], "Labels": labels}
    )
    await runs.start()
    assert await docker_backend.purge(others) == 0, "it may be about to run"
    monkeypatch.setattr("sandbox.docker.backend._ABANDONED_S", -3600.0)
    assert await docker_backend.purge(others) == 1
    with pytest.raises(DockerError):
        await never_ran.show()
    await runs.show()
    await runs.delete(force=True)
    assert (await living.exec("echo well", timeout=60)).text == "well\n", "however old it is"
    await living.close()


@pytest.mark.parametrize("info", [{}, {"SystemTime": None}, {"SystemTime": "soon"}])
def test_a_daemon_that_tells_no_time_has_nothing_that_is_old(info: dict[str, str]) -> None:
    assert not backend_of_docker._is_abandoned({"State": "created", "Created": 1}, backend_of_docker._time_of(info))
    later = backend_of_docker._time_of({"SystemTime": "2026-11-30T23:31:08.123456789Z"})
    assert backend_of_docker._is_abandoned({"State": "created", "Created": 1}, later)


@pytest.mark.docker
async def test_plain_exec_where_there_is_no_guest(docker_backend: Backend, run_name: str, source: Path) -> None:
    backend = DockerBackend(run_name, with_guest=False)
    async with await backend.create(SandboxSpec(run=run_name, lease="plain", source=source)) as sandbox:
        result = await sandbox.exec("pwd; echo $A; ls; exit 3", timeout=30, env={"A": "b c"})
        assert (result.exit_code, result.text) == (3, "/testbed\nb c\nlink\npkg\nrun.sh\n")
        await sandbox.write("deep/file", b"some bytes", mode=0o755)
        assert await sandbox.read("deep/file") == b"some bytes"
        for path, kind in {"absent": "missing", "deep": "not_a_file"}.items():
            with pytest.raises(SandboxError) as caught:
                await sandbox.read(path)
            assert caught.value.kind == kind
        assert (await sandbox.exec(["no-such-program"], timeout=30)).exit_code in (126, 127)
        cut = await sandbox.exec("seq 1 100000", timeout=30, max_output=100)
        assert cut.head == b"".join(b"%d\n" % n for n in range(1, 100))[:50] and cut.tail.endswith(b"99999\n100000\n")
        assert cut.total_bytes == 588895

        async def sleeping() -> set[int]:
            seen = (await sandbox.exec("cat /proc/[0-9]*/cmdline", timeout=30)).text
            return {n for n in range(1, 5) if f"sleep\x00740{n}" in seen}

        async def sleep(wanted: set[int]) -> bool:
            return await sleeping() == wanted

        late = await sandbox.exec("setsid sleep 7401 & (setsid sleep 7402 &); sleep 7403", timeout=5)
        assert late.timed_out
        assert (await sandbox.exec("sleep 7404 & echo at once", timeout=30)).text == "at once\n"
        await until(lambda: sleep({4}))  # what was killed dies in its own time
        await sandbox.kill_all()
        await until(lambda: sleep(set()))
    capabilities = await backend.probe()
    assert capabilities.available
    await backend.close()


@pytest.mark.docker
async def test_an_image_that_somebody_removed_is_had_again(docker_backend: Backend, run_name: str) -> None:
    """A start that finds its image gone asks for it once more; where no registry has it, that is what is said."""
    backend = DockerBackend(run_name)
    backend.hosts[0].images.add("localhost:1/gone:1")  # as if it had been there a moment ago
    with pytest.raises(SandboxError, match="localhost:1/gone:1"):
        await backend.create(SandboxSpec(run=run_name, lease="x", image="localhost:1/gone:1"))
    assert not backend.hosts[0].images.has("localhost:1/gone:1")
    await backend.close()
