"""Do the bounds hold: disk and files of a container, its removal, the actor's loop, the way out?"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.sandbox.escapes import PYTHON, SHELL, escapes, planted
from benchmarks.sandbox.lost_changes import lost_changes
from sandbox.base import Backend, Limits, SandboxSpec
from sandbox.docker.backend import DockerBackend
from sandbox.docker.container import DockerSandbox
from sandbox.judgement.checkout import take_patch
from sandbox.judgement.grading import grade
from sandbox.namespace.backend import NamespaceBackend
from sandbox.tasks.sources import sandbox_spec
from sandbox.tasks.task import Task

FIGURES = ("docker_disk_overshoot_mib", "docker_inodes_bounded", "removal_blocked")
LIMITS = Limits(memory_mib=512, disk_mib=64)
DEADLINE_S = 300.0
TICK_S = 0.005
DEEP = "import os\nfor _ in range(20000):\n    os.mkdir('n'); os.chdir('n')\n"
FILL = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
for place in ("/testbed", "/root", "/var/tmp", "/usr", "/tmp"):
    for n in range(200):
        try:
            fd = os.open(f"{place}/big{n}", os.O_RDWR | os.O_CREAT)
            if libc.fallocate(fd, 0, ctypes.c_long(0), ctypes.c_long(16 << 20)) and os.write(fd, b"x" * (1 << 20)) < 1:
                break
        except OSError:
            break
places = ("/testbed", "/root", "/var/tmp", "/usr", "/tmp")
print(sum(os.stat(f"{p}/{n}").st_blocks for p in places for n in os.listdir(p) if n.startswith("big")) * 512)
"""
MANY = """
import os
made = 0
try:
    for folder in range(400):
        os.mkdir(f"d{folder}")
        for n in range(1000):
            os.close(os.open(f"d{folder}/{n}", os.O_CREAT))
            made += 1
except OSError:
    pass
print(made)
"""
TASK = Task(
    task_id="bounds/1",
    source="micro",
    repository="bounds",
    issue="i",
    fail_to_pass=("test_m.py::test_two",),
    files={"m.py": "def f():\n    return 1\n", "big.txt": "x\ny\n" * 900_000},
    test_files={"test_m.py": "from m import f\n\n\ndef test_two():\n    assert f() == 2\n"},
)
WORST = (
    "yes x | head -c 3900000 > big.txt",
    "yes 'x\ny' | tac | head -c 3900000 > big.txt",
    "python3 -c \"import random; print('\\n'.join(str(random.randrange(9)) for _ in range(1900000)))\" > big.txt",
    "head -c 3900000 /dev/urandom > big.txt; head -c 3900000 /dev/urandom > other.bin",
    "for i in $(seq 1900); do echo $i > f$i; done",
    "mkdir d; cd d; python3 -c \"for i in range(60000): open(str(i), 'w').close()\"",
    "python3 -c \"open('long.txt', 'w').write('x' * 3900000)\"",
    "d=.; for i in $(seq 150); do d=$d/n; done; mkdir -p $d; echo x > $d/x; rm big.txt",
    "truncate -s 60G sparse; truncate -s 3900000 zeros; cp zeros zeros2",
    "echo 'def f():' > m.py; echo '    return 2' >> m.py; seq 500000 > big.txt",
)


async def docker_bounds() -> tuple[dict[str, float | None], dict[str, str]]:
    """Figures of the Docker backend's limits, or why there are none."""
    run = f"bounds-{secrets.token_hex(4)}"
    backend = DockerBackend(run)
    try:
        capabilities = await backend.probe()
        if not capabilities.available:
            return dict.fromkeys(FIGURES), dict.fromkeys(FIGURES, capabilities.reason)
        spec = SandboxSpec(run=run, lease="bounds", limits=LIMITS)
        async with await backend.create(spec) as sandbox:
            taken = int((await sandbox.exec(["python3", "-c", FILL], timeout=DEADLINE_S)).text.split()[-1])
        async with await backend.create(spec) as sandbox:
            made = int((await sandbox.exec(["python3", "-c", MANY], timeout=DEADLINE_S)).text.split()[-1])
        blocked = await _removal_blocked(backend, run)
    finally:
        await backend.close()
    return {
        "docker_disk_overshoot_mib": max(0.0, taken / 2**20 - LIMITS.disk_mib),
        "docker_inodes_bounded": float(made < 300_000),
        "removal_blocked": float(blocked),
    }, {}


async def _removal_blocked(backend: DockerBackend, run: str) -> int:
    """Containers that are still there after their end, of those with a deep tree and their neighbours; with a disk of
    their own and without."""
    for reason in ("", "for the benchmark"):
        backend.hosts[0].no_cover = reason
        spec = SandboxSpec(run=run, lease="deep", limits=LIMITS)
        sandboxes: list[DockerSandbox] = [await backend.create(spec) for _ in range(2)]
        await sandboxes[0].exec(["python3", "-c", DEEP], timeout=DEADLINE_S)
        await asyncio.gather(*(sandbox.close() for sandbox in sandboxes), return_exceptions=True)
    backend.hosts[0].no_cover = ""
    wanted = json.dumps({"label": [f"longhaul.run={run}"]})
    return len(await backend.hosts[0].client.containers.list(all=1, filters=wanted))


async def loop_blocked_ms(num_patches: int) -> dict[str, float | None]:
    """The longest pause of this loop while the worst changes are taken and judged, and the most that it worked itself
    in one: the rest of a pause is the machine's, whose cores others may hold."""
    run = f"bounds-{secrets.token_hex(4)}"
    backend = NamespaceBackend(run)
    try:
        await backend.probe()
        with TemporaryDirectory() as cache:
            spec = await asyncio.to_thread(sandbox_spec, TASK, run, "l", LIMITS, Path(cache))
            await _take_and_judge(backend, spec, WORST[0], run, Path(cache))  # what is made once is made
            async with _longest_pause() as pause:
                for start in range(0, num_patches, 4):
                    scripts = [WORST[n % len(WORST)] for n in range(start, min(start + 4, num_patches))]
                    await asyncio.gather(*(_take_and_judge(backend, spec, s, run, Path(cache)) for s in scripts))
    finally:
        await backend.close()
    return {"loop_blocked_ms": pause[0] * 1e3, "loop_busy_ms": pause[1] * 1e3}


async def _take_and_judge(backend: Backend, spec: SandboxSpec, script: str, run: str, cache: Path) -> None:
    async with await backend.create(spec) as sandbox:
        await sandbox.exec(script, timeout=DEADLINE_S)
        patch = await take_patch(sandbox, TASK)
    await grade(backend, TASK, patch, run=run, lease="l", limits=LIMITS, cache_dir=cache, timeout_s=30)


@asynccontextmanager
async def _longest_pause() -> AsyncIterator[list[float]]:
    longest = [0.0, 0.0]

    async def tick() -> None:
        while True:
            before, worked = time.perf_counter(), time.thread_time()
            await asyncio.sleep(TICK_S)
            longest[0] = max(longest[0], time.perf_counter() - before - TICK_S)
            longest[1] = max(longest[1], time.thread_time() - worked)

    ticking = asyncio.create_task(tick())
    try:
        yield longest
    finally:
        ticking.cancel()
        await asyncio.wait([ticking])


async def bounds(quick: bool) -> tuple[dict[str, float | None], dict[str, str], dict[str, object]]:
    """All figures, the reasons for those that are missing, and the lists behind them."""
    figures, missing = await docker_bounds()
    figures |= await loop_blocked_ms(10 if quick else 50)
    got: dict[str, list[str]] = {}
    with planted() as found:
        backends: list[Backend] = [NamespaceBackend("escapes"), DockerBackend("escapes")]
        for backend in backends:
            try:
                capabilities = await backend.probe()
                if capabilities.available:
                    got[backend.name] = await escapes(backend, "escapes", found)
            finally:
                await backend.close()
    figures["escapes"] = float(sum(map(len, got.values())))
    figures["escapes_tried"] = float(len(got) * len(SHELL | PYTHON))
    figures["lost_changes"] = float(await lost_changes(30 if quick else 300))
    return figures, missing, {"escapes": got}
