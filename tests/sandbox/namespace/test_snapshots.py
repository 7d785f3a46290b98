"""Branches of namespace sandboxes: generations, deletions, links, and trees that no overlay can lie over."""

from __future__ import annotations

from pathlib import Path

import pytest

from protocol.errors import SandboxError
from sandbox.base import Backend, Sandbox, SandboxSpec


async def listing(sandbox: Sandbox) -> str:
    return (await sandbox.exec("find . -type f -printf '%P ' -exec cat {} + | sort", timeout=20)).text


async def test_generations(namespace_backend: Backend, run_name: str, source: Path) -> None:
    """Each adds, changes and deletes; every one is restored as it was, whatever became of the others."""
    snapshots, listings = [], []
    spec = SandboxSpec(run=run_name, lease="g0", source=source)
    for generation in range(3):
        async with await namespace_backend.create(spec) as sandbox:
            await sandbox.write(f"new{generation}", b"%d\n" % generation)
            await sandbox.exec(f"echo {generation} >> pkg/code.py; rm -f run.sh new{generation - 2}", timeout=20)
            await sandbox.exec(f"echo h{generation} > ~/h{generation}; echo t{generation} > /tmp/t{generation}", 20)
            if generation == 1:
                await sandbox.exec("rm -r pkg && mkdir pkg && echo whole > pkg/other", timeout=20)
            listings.append(await listing(sandbox))
            snapshots.append(await sandbox.snapshot())
        spec = SandboxSpec(run=run_name, lease=f"g{generation + 1}", source=source, from_snapshot=snapshots[-1])
    await namespace_backend.delete_snapshot(snapshots[1])
    for generation in (0, 2):
        spec = SandboxSpec(run=run_name, lease="again", source=source, from_snapshot=snapshots[generation])
        async with await namespace_backend.create(spec) as sandbox:
            assert await listing(sandbox) == listings[generation]
            rest = (await sandbox.exec("cat ~/h* /tmp/t*", timeout=20)).text
            assert rest.split() == [f"{kind}{n}" for kind in "ht" for n in range(generation + 1)]
            await sandbox.write("pkg/writable", b"")
    with pytest.raises(SandboxError, match="there is no snapshot"):
        await namespace_backend.create(SandboxSpec(run=run_name, lease="gone", from_snapshot=snapshots[1]))


async def test_an_empty_tree(namespace_backend: Backend, run_name: str) -> None:
    async with await namespace_backend.create(SandboxSpec(run=run_name, lease="empty")) as sandbox:
        await sandbox.write("file", b"one")
        snapshot = await sandbox.snapshot()
    spec = SandboxSpec(run=run_name, lease="branch", from_snapshot=snapshot)
    async with await namespace_backend.create(spec) as sandbox:
        assert await sandbox.read("file") == b"one"
        await sandbox.write("file", b"two")
        assert await sandbox.read("file") == b"two"


async def test_taking_one_follows_no_link_and_stops_what_runs(
    namespace_backend: Backend, run_name: str, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("the host's secret")
    async with await namespace_backend.create(SandboxSpec(run=run_name, lease="hostile")) as sandbox:
        await sandbox.exec(["ln", "-s", str(secret), "link"], timeout=20)
        await sandbox.exec(["ln", "-s", str(tmp_path), "directory"], timeout=20)
        await sandbox.exec("mkfifo pipe; truncate -s 100G sparse; ln -s /etc/shadow /tmp/shadow", timeout=20)
        swap = "while :; do mkdir -p d/e; echo x > d/e/f; rm -rf d; ln -s / d; rm d; done"
        await sandbox.exec(f"({swap}) > /dev/null 2>&1 & echo $! > pid", timeout=20)
        snapshot = await sandbox.snapshot()
        assert (await sandbox.exec("kill -0 $(cat pid) && kill -9 $(cat pid)", timeout=20)).exit_code == 0
    async with await namespace_backend.create(
        SandboxSpec(run=run_name, lease="branch", from_snapshot=snapshot)
    ) as sandbox:
        seen = await sandbox.exec("cat link directory/secret d/etc/shadow /tmp/shadow; readlink link; test -p pipe", 20)
        assert seen.exit_code == 0 and "the host's secret" not in seen.text and str(secret) in seen.text


async def test_trees_that_no_overlay_can_lie_over_are_copied(namespace_backend: Backend, run_name: str) -> None:
    """`/proc` allows no id-mapped mounts and no overlays; an ordinary user copies root's trees anyway."""
    tree = Path("/proc/sys/debug")
    if not tree.is_dir():  # noqa: ASYNC240  (nothing waits here)
        pytest.skip("this kernel has no such settings")
    spec = SandboxSpec(run=run_name, lease="copied", source=tree)
    async with await namespace_backend.create(spec) as sandbox:
        names = (await sandbox.exec("ls && for f in *; do echo x > $f; done && cat *", timeout=20)).text.split()
        assert sorted(names) == sorted([*(path.name for path in tree.iterdir()), *("x" for _ in tree.iterdir())])  # noqa: ASYNC240
        snapshot = await sandbox.snapshot()
    branch = SandboxSpec(run=run_name, lease="branch", source=tree, from_snapshot=snapshot)
    async with await namespace_backend.create(branch) as sandbox:
        assert set((await sandbox.exec("cat *", timeout=20)).text.split()) == {"x"}
