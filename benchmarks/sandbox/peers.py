"""What people use today: `docker exec` by subprocess (as mini-swe-agent does) and SWE-ReX's Docker deployment."""

from __future__ import annotations

import asyncio
import itertools
import logging
import statistics
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

SWEREX_FIGURES = ("swerex_exec_p50_ms", "swerex_start_p50_ms")
FIGURES = ("docker_exec_p50_ms", "docker_exec16_p50_ms", "docker_exec_episodes16_per_min", *SWEREX_FIGURES)
NUM_AT_ONCE = 16
EPISODE_COMMANDS = 60


async def docker_exec(image: str, repeats: int, commands: int, writes: int) -> dict[str, float]:
    """`docker run -d`, one `docker exec` a command, files through `cat >`, `docker rm -f`.

    Episodes of fewer commands than a whole one are scaled: the start and end stay, the commands count more often.
    """
    container = await _start(image)
    alone = [await _exec(container, "true") for _ in range(repeats)]
    sixteen = await asyncio.gather(*(_exec_many(container, max(2, repeats // 8)) for _ in range(NUM_AT_ONCE)))
    await _docker("rm", "-f", container)

    start = time.perf_counter()
    parts = await asyncio.gather(*(_episode(image, commands, writes) for _ in range(NUM_AT_ONCE)))
    wall = time.perf_counter() - start
    fixed = statistics.mean(whole - working for whole, working in parts)
    working = statistics.mean(working for _, working in parts) * EPISODE_COMMANDS / commands
    seconds = wall if commands == EPISODE_COMMANDS else fixed + working
    return {
        "docker_exec_p50_ms": statistics.median(alone),
        "docker_exec16_p50_ms": statistics.median(itertools.chain.from_iterable(sixteen)),
        "docker_exec_episodes16_per_min": 60 * NUM_AT_ONCE / seconds,
    }


async def _episode(image: str, commands: int, writes: int) -> tuple[float, float]:
    """Seconds of the whole, and of the commands and writes in it."""
    start = time.perf_counter()
    container = await _start(image)
    working = time.perf_counter()
    for n in range(commands):
        await _exec(container, "true")
        if n < writes:
            await _docker("exec", "-i", container, "bash", "-c", f"cat > /tmp/file{n}", stdin=b"x" * 1000)
    working = time.perf_counter() - working
    await _docker("rm", "-f", container)
    return time.perf_counter() - start, working


async def _exec_many(container: str, num: int) -> list[float]:
    return [await _exec(container, "true") for _ in range(num)]


async def _start(image: str) -> str:
    return await _docker("run", "-d", "--rm", "--network", "none", image, "sleep", "3600")


async def _exec(container: str, command: str) -> float:
    start = time.perf_counter()
    await _docker("exec", container, "bash", "-c", command)
    return 1e3 * (time.perf_counter() - start)


async def _docker(*arguments: str, stdin: bytes = b"") -> str:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec("docker", *arguments, stdin=pipe, stdout=pipe, stderr=pipe)
    out, err = await process.communicate(stdin)
    if process.returncode:
        raise RuntimeError(f"docker {arguments[0]}: {err.decode(errors='replace')}")
    return out.decode().strip()


async def swerex(image: str, repeats: int) -> dict[str, float]:
    """SWE-ReX with its server from this environment's packages, bound into the container. Raises ImportError."""
    from swerex.deployment.docker import DockerDeployment
    from swerex.runtime.abstract import Command

    logging.getLogger("rex-deploy").setLevel(logging.ERROR)
    starts, execs = [], []
    with tempfile.TemporaryDirectory() as scratch:
        server = Path(scratch) / "swerex-remote"
        server.write_text('#!/bin/sh\nexec python3 -c "from swerex.server import main; main()" "$@"\n')
        server.chmod(0o755)
        packages = sysconfig.get_path("purelib")
        binds = ["-v", f"{packages}:/opt/packages:ro", "-v", f"{server}:/usr/local/bin/swerex-remote:ro"]
        arguments = [*binds, "-e", "PYTHONPATH=/opt/packages", "--init"]
        for _ in range(max(2, repeats // 10)):
            deployment = DockerDeployment(image=image, pull="never", docker_args=arguments, startup_timeout=60.0)
            start = time.perf_counter()
            await deployment.start()
            starts.append(1e3 * (time.perf_counter() - start))
            for _ in range(repeats):
                start = time.perf_counter()
                await deployment.runtime.execute(Command(command="true", shell=True, timeout=30))
                execs.append(1e3 * (time.perf_counter() - start))
            await deployment.stop()
    print(f"SWE-ReX under Python {sys.version.split()[0]}", file=sys.stderr)
    return {"swerex_exec_p50_ms": statistics.median(execs), "swerex_start_p50_ms": statistics.median(starts)}
