"""The agent as a user without root, in real containers."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from protocol.errors import SandboxError
from sandbox.base import Backend, Limits, SandboxSpec
from sandbox.docker.backend import DockerBackend
from sandbox.judgement.checkout import prepare, take_patch
from sandbox.tasks.task import Task

TASK = Task(
    task_id="user/1",
    source="swe-bench",
    repository="user",
    issue="i",
    fail_to_pass=("t.py::t",),
    image="to be made",
)
SETUP = (
    "mkdir -p pkg /var/env/bin /var/other; echo 'A = 1' > pkg/a.py; echo tool > /var/env/bin/tool; ln -s pkg link;"
    " git init -q .; git -c user.name=n -c user.email=e add -A; git -c user.name=n -c user.email=e commit -qm base"
)


@pytest.mark.docker
@pytest.mark.parametrize("covered", [True, False], ids=["own disk", "shared disk"])
async def test_the_agent_has_no_root(docker_backend: Backend, run_name: str, covered: bool) -> None:
    assert isinstance(docker_backend, DockerBackend)
    if not covered:
        docker_backend.hosts[0].no_cover = "for the test"
    limits = Limits(memory_mib=256, disk_mib=64)
    async with await docker_backend.create(SandboxSpec(run=run_name, lease="image", limits=limits)) as sandbox:
        assert (await sandbox.exec(SETUP, timeout=60)).exit_code == 0
        snapshot = await sandbox.snapshot()
    image = snapshot.reference
    spec = SandboxSpec(run=run_name, lease="l", image=image, user_paths=("/var/env",), limits=limits)
    task = replace(TASK, image=image)
    async with await docker_backend.create(spec) as sandbox:
        await prepare(sandbox, task)
        seen = await sandbox.exec("id -u; id -G; echo $HOME; whoami; grep CapEff /proc/self/status", timeout=30)
        assert seen.text.split() == ["1000", "1000", "/home/agent", "agent", "CapEff:", "0" * 16]
        writes = "echo 'A = 2' > pkg/a.py && touch new /tmp/x ~/y /var/env/bin/z && git status --porcelain && git log"
        written = await sandbox.exec(writes, timeout=30)
        assert written.exit_code == 0 and " M pkg/a.py" in written.text, written.text
        for attack in ("rm -f $(command -v git)", "echo x > /usr/bin/x", "touch /var/other/x", "kill -9 1", "su -c id"):
            assert (await sandbox.exec(attack, timeout=30)).exit_code != 0, attack
        # nor by the tools that write and read for it
        for path in ("/usr/bin/x", "/var/other/x", "/etc/passwd"):
            with pytest.raises(SandboxError, match="denied"):
                await sandbox.write(path, b"x")
        await sandbox.exec("ln -s /var/other out", timeout=30)
        with pytest.raises(SandboxError, match="denied"):
            await sandbox.write("out/x", b"x")
        await sandbox.write("pkg/b.py", b"B = 1\n")
        assert (await sandbox.exec("stat -c %u pkg/b.py; sleep 600 & sleep 0.1; rm out", timeout=30)).text == "1000\n"
        patch = await take_patch(sandbox, task)
        assert (await sandbox.exec("cat /proc/[0-9]*/cmdline", timeout=30)).text.count("sleep") == 0
    assert [change.path for change in patch.changes] == ["new", "pkg/a.py", "pkg/b.py"]
    await docker_backend.delete_snapshot(snapshot)


@pytest.mark.docker
async def test_root_keeps_what_it_had(docker_backend: Backend, run_name: str) -> None:
    """Before it is handed over: what is done for a task is done by root, without a way to other users."""
    spec = SandboxSpec(run=run_name, lease="l", user_paths=())
    async with await docker_backend.create(spec) as sandbox:
        seen = await sandbox.exec("id -u; grep CapEff /proc/self/status", timeout=30)
        root, _, capabilities = seen.text.split()
        assert root == "0" and int(capabilities, 16) & ~0b111011 == 0
