"""How many agents can be there at the same moment, and what each takes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path

import psutil

from actors.policies.scripted import ScriptedPolicy
from actors.policy import Request, Sampled
from benchmarks.gateway.world import lease_of, open_runner, settings_of, thin_agent, tools_tokenizer

DEADLINE_S = 300.0


class _Gate:
    """A policy that answers nobody until all are there."""

    def __init__(self, inner: ScriptedPolicy) -> None:
        self.inner = inner
        self.num_waiting = 0
        self.opened = asyncio.Event()

    async def generate(self, request: Request) -> Sampled:
        """See `Policy.generate`."""
        self.num_waiting += 1
        await self.opened.wait()
        self.num_waiting -= 1
        return await self.inner.generate(request)

    async def close(self) -> None:
        """Nothing to drop."""


async def measure(model_dir: Path, wanted: int) -> dict[str, float | None]:
    """`agents_alive`, `memory_mb_per_agent`: of everything that an agent adds to this machine."""
    tokenizer = tools_tokenizer(model_dir)
    policy = _Gate(ScriptedPolicy(tokenizer, lambda *_: "submit"))
    directory, agent = thin_agent()
    limits = {"memory_mib": 64, "max_processes": 16}
    settings = settings_of(agent, sandbox={"backend": "namespace", **limits}, episode={"wall_time_s": 2 * DEADLINE_S})
    with directory:
        async with open_runner(settings, policy, tokenizer, lambda exchange: None) as runner:
            running = [asyncio.create_task(runner.run(lease_of(i, settings))) for i in range(wanted)]
            until = time.monotonic() + DEADLINE_S
            while policy.num_waiting < wanted and time.monotonic() < until and not all(t.done() for t in running):  # noqa: ASYNC110
                await asyncio.sleep(0.2)
            alive = policy.num_waiting
            used = _memory_below()
            policy.opened.set()
            ended = await asyncio.gather(*running, return_exceptions=True)
    finished = sum(not isinstance(each, BaseException) for each in ended)
    return {
        "agents_alive": float(min(alive, finished)),
        "memory_mb_per_agent": used / alive / 1e6 if alive else None,
    }


def _memory_below() -> int:
    """Proportional set size (bytes) of all processes that this one has started: agents, guests and what holds them."""
    total = 0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(OSError):  # it ended meanwhile
            for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) << 10
    return total
