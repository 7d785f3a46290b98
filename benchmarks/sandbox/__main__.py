"""How fast are sandboxes, and what do people use today? Both backends beside `docker exec` and SWE-ReX.

    python -m benchmarks.sandbox [--quick] [--only namespace|docker|peers|bounds] [--plot FILE.png]

Commands are `bash -c true`. With --quick, fleets and peer episodes are smaller and scaled up (see "settings").
"""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import psutil
from msgspec import Struct

from benchmarks.report import parser, report
from benchmarks.sandbox import peers
from benchmarks.sandbox.bounds import bounds
from benchmarks.sandbox.plot import plot
from sandbox.base import Backend, Limits, Sandbox, SandboxSpec
from sandbox.docker.backend import DockerBackend
from sandbox.docker.container import DockerSandbox
from sandbox.namespace.backend import NamespaceBackend, NamespaceSandbox
from sandbox.pool import Pool
from sandbox.tasks.images import host_image

COMMANDS, WRITES = 60, 10  # of one episode
FLEET = 512
DEADLINE_S = 30.0
OWNER = """
import asyncio, sys
from benchmarks.sandbox.__main__ import make_backend, start_fleet
async def main():
    backend = make_backend(sys.argv[1], sys.argv[2])
    sandboxes = await start_fleet(backend, sys.argv[2], int(sys.argv[3]))
    print(*(s.pid if sys.argv[1] == "namespace" else s.container.id for s in sandboxes), flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


class Sizes(Struct, frozen=True):
    """How much of everything is done."""

    starts: int
    execs: int
    fleet: dict[str, int]  # sandboxes alive at once, by backend
    killed: dict[str, int]  # sandboxes of an owner that is killed
    episodes_s: float
    peer_commands: int
    peer_writes: int
    peer_repeats: int


FULL = Sizes(
    40, 400, {"namespace": FLEET, "docker": FLEET}, {"namespace": 256, "docker": 128}, 30.0, COMMANDS, WRITES, 40
)
QUICK = Sizes(8, 60, {"namespace": 64, "docker": 16}, {"namespace": 32, "docker": 8}, 3.0, 6, 1, 8)


def make_backend(name: str, run: str) -> Backend:
    """A backend with the limits on starts that a run has on two cores."""
    return NamespaceBackend(run, max_starts=8) if name == "namespace" else DockerBackend(run, max_starts=6)


async def start_fleet(backend: Backend, run: str, num: int) -> list[Sandbox]:
    """Start many at once."""
    specs = [SandboxSpec(run=run, lease=f"fleet-{n}", limits=Limits(memory_mib=64)) for n in range(num)]
    return await asyncio.gather(*(backend.create(spec) for spec in specs))


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--plot", type=Path, metavar="FILE.png", help="draw exec latency and episodes by the minute")
    flags.add_argument("--save", action="store_true", help="keep the result in benchmarks/results")
    flags.add_argument("--only", choices=["namespace", "docker", "peers", "bounds"], action="append")
    options = flags.parse_args()
    sizes = QUICK if options.quick else FULL
    parts = options.only or ["namespace", "docker", "peers", "bounds"]
    figures: dict[str, float | None] = {}
    missing: dict[str, str] = {}
    details: dict[str, object] = {}
    for part in parts:
        if part == "bounds":
            measured, reasons, details = asyncio.run(bounds(options.quick))
            figures |= measured
            missing |= reasons
            continue
        measured, reasons = asyncio.run(_peers(sizes) if part == "peers" else _backend(part, sizes))
        figures |= measured
        missing |= reasons
    settings = {"quick": options.quick, "commands_per_episode": COMMANDS, "writes_per_episode": WRITES}
    settings |= {f"{name}_alive_scaled_from": num for name, num in sizes.fleet.items() if num < FLEET}
    settings |= {f"{name}_killed": num for name, num in sizes.killed.items()}
    if sizes.peer_commands < COMMANDS:
        settings["peer_episodes_scaled_from_commands"] = sizes.peer_commands
    if options.plot:
        plot(figures, options.plot)
    name = "-".join(["sandbox", *sorted(options.only or ())])  # a part alone does not take the place of all
    report(name, figures, settings, missing, details=details, save=options.save)


def _figure(name: str, kind: str) -> str:
    """`docker_exec_p50_ms` is the peer's: people call `docker exec` what it measures."""
    return f"docker_guest_{kind}" if name == "docker" and kind.startswith("exec") else f"{name}_{kind}"


def _figure_names(name: str) -> list[str]:
    kinds = "start_p50_ms exec_p50_ms exec16_p50_ms commands_per_s write_p50_ms 512_alive_s memory_mb gone_after_kill_s"
    names = [_figure(name, kind) for kind in [*kinds.split(), "timeout_overshoot_ms", "episodes16_per_min"]]
    return names + ["docker_pool_acquire_ms"] * (name == "docker")


def _none_of(names: Iterable[str], reason: str) -> tuple[dict[str, float | None], dict[str, str]]:
    return dict.fromkeys(names), dict.fromkeys(names, reason)


async def _backend(name: str, sizes: Sizes) -> tuple[dict[str, float | None], dict[str, str]]:
    run = f"bench-{secrets.token_hex(4)}"
    backend = make_backend(name, run)
    capabilities = await backend.probe()
    if not capabilities.available:
        await backend.close()
        return _none_of(_figure_names(name), capabilities.reason)
    spec = SandboxSpec(run=run, lease="bench")
    figures: dict[str, float] = {}
    try:
        await (await backend.create(spec)).close()  # what is built once is built
        figures["start_p50_ms"] = await _starts(backend, spec, sizes.starts)
        figures |= await _one_sandbox(backend, spec, sizes)
        figures |= await _fleet(backend, run, name, sizes)
        figures["episodes16_per_min"] = await _episodes(backend, spec, sizes.episodes_s)
        figures["gone_after_kill_s"] = await _gone_after_kill(name, run, sizes.killed[name])
        result: dict[str, float | None] = {_figure(name, kind): value for kind, value in figures.items()}
        if name == "docker":
            result["docker_pool_acquire_ms"] = await _pool(backend, run, sizes.starts)
    finally:
        await backend.close()
    return result, {}


async def _starts(backend: Backend, spec: SandboxSpec, num: int) -> float:
    times = []
    for _ in range(num):
        start = time.perf_counter()
        sandbox = await backend.create(spec)
        times.append(time.perf_counter() - start)
        await sandbox.close()
    return 1e3 * statistics.median(times)


async def _one_sandbox(backend: Backend, spec: SandboxSpec, sizes: Sizes) -> dict[str, float]:
    async with await backend.create(spec) as sandbox:
        execs = await _repeat(lambda: sandbox.exec("true", DEADLINE_S), sizes.execs)
        writes = await _repeat(lambda: sandbox.write("file", b"x" * 1000), sizes.execs)
        overshoots = []
        for _ in range(3):
            start = time.perf_counter()
            result = await sandbox.exec("sleep 30", timeout=1)
            overshoots.append(1e3 * (time.perf_counter() - start - 1))
            assert result.timed_out
    median = statistics.median
    return {
        "exec_p50_ms": median(execs),
        "write_p50_ms": median(writes),
        "timeout_overshoot_ms": median(overshoots),
    }


async def _fleet(backend: Backend, run: str, name: str, sizes: Sizes) -> dict[str, float]:
    """Many alive: how long they take to be there, what each needs, what all do together."""
    num = sizes.fleet[name]
    start = time.perf_counter()
    fleet = await start_fleet(backend, run, num)
    alive = time.perf_counter() - start
    memory = statistics.median([await _memory(sandbox) for sandbox in fleet[:16]])
    sixteen = await _exec_in_all(fleet[:16], sizes.execs // 4)
    rounds = max(1, 4 * sizes.execs // num)
    start = time.perf_counter()
    await _exec_in_all(fleet, rounds)
    per_s = num * rounds / (time.perf_counter() - start)
    for at in range(0, num, 32):
        await asyncio.gather(*(sandbox.close() for sandbox in fleet[at : at + 32]))
    return {
        "512_alive_s": alive * FLEET / num,
        "memory_mb": memory,
        "exec16_p50_ms": statistics.median(sixteen),
        "commands_per_s": per_s,
    }


async def _memory(sandbox: Sandbox) -> float:
    """Proportional set size of a sandbox's own processes: guest, and bubblewrap's monitor or the container's shim."""
    if isinstance(sandbox, NamespaceSandbox):
        tree = psutil.Process(sandbox.pid)
    else:
        assert isinstance(sandbox, DockerSandbox)
        tree = psutil.Process((await sandbox.container.show())["State"]["Pid"]).parent()
    processes = [tree, *tree.children(recursive=True)]
    return sum(process.memory_full_info().pss for process in processes) / 1e6


async def _exec_in_all(fleet: list[Sandbox], rounds: int) -> list[float]:
    times = await asyncio.gather(*(_repeat(lambda s=s: s.exec("true", DEADLINE_S), rounds) for s in fleet))
    return list(itertools.chain.from_iterable(times))


async def _episodes(backend: Backend, spec: SandboxSpec, seconds: float) -> float:
    """Whole episodes, sixteen at once, by the minute; those under way at the end count by their share."""
    done = 0.0
    end = time.perf_counter() + seconds

    async def worker() -> None:
        nonlocal done
        while time.perf_counter() < end:
            async with await backend.create(spec) as sandbox:
                for n in range(COMMANDS):
                    await sandbox.exec("true", DEADLINE_S)
                    if n < WRITES:
                        await sandbox.write(f"file{n}", b"x" * 1000)
            done += 1

    start = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(16)))
    return 60 * done / (time.perf_counter() - start)


async def _gone_after_kill(name: str, run: str, num: int) -> float:
    """Seconds from the owner's SIGKILL until no process and no container of it is left."""
    owner = _owner(name, run, num)
    try:
        assert owner.stdout is not None
        words = (await asyncio.to_thread(owner.stdout.readline)).split()
        assert len(words) == num, f"the owner started {len(words)} of {num} sandboxes"
        owner.send_signal(signal.SIGKILL)
        start = time.perf_counter()
        owner.wait()
        while _left(name, words) and time.perf_counter() - start < 120:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        return time.perf_counter() - start
    finally:
        owner.kill()
        owner.wait()
        assert owner.stdout is not None
        owner.stdout.close()
        reaper = make_backend(name, f"{run}-reaper")
        await reaper.purge("")
        await reaper.close()


def _owner(name: str, run: str, num: int) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", OWNER, name, run, str(num)], stdout=subprocess.PIPE, text=True)


def _left(name: str, words: list[str]) -> bool:
    if name == "namespace":
        return any(psutil.pid_exists(int(word)) for word in words)
    listed = subprocess.run(
        ["docker", "ps", "--all", "--quiet", "--no-trunc"], capture_output=True, text=True, check=True
    )
    return not set(words).isdisjoint(listed.stdout.split())


async def _pool(backend: Backend, run: str, num: int) -> float:
    """Time to take a container that is ready."""
    pool = Pool(backend, warm=1)
    spec = SandboxSpec(run=run, lease="pool", image=host_image())
    times = []
    for _ in range(num + 1):
        start = time.perf_counter()
        sandbox = await pool.create(spec)
        times.append(time.perf_counter() - start)
        async with asyncio.timeout(60):
            while not pool.num_warm:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await sandbox.close()
    return 1e3 * statistics.median(times[1:])


async def _repeat(call: Callable[[], Awaitable[object]], num: int) -> list[float]:
    times = []
    for _ in range(num):
        start = time.perf_counter()
        await call()
        times.append(1e3 * (time.perf_counter() - start))
    return times


async def _peers(sizes: Sizes) -> tuple[dict[str, float | None], dict[str, str]]:
    backend = DockerBackend(f"bench-{secrets.token_hex(4)}")
    try:
        capabilities = await backend.probe()
        if not capabilities.available:
            return _none_of(peers.FIGURES, capabilities.reason)
        async with await backend.create(SandboxSpec(run="bench", lease="image")):
            pass
    finally:
        await backend.close()
    figures: dict[str, float | None] = {}
    figures |= await peers.docker_exec(host_image(), sizes.peer_repeats, sizes.peer_commands, sizes.peer_writes)
    try:
        figures |= await peers.swerex(host_image(), sizes.peer_repeats)
    except (ImportError, RuntimeError, TimeoutError) as error:
        nothing, reasons = _none_of(peers.SWEREX_FIGURES, f"SWE-ReX does not work here: {str(error)[:300]}")
        return figures | nothing, reasons
    return figures, {}


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
