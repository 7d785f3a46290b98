"""A sandbox actor in a process of its own, to be killed: `killed_actor.py ENDPOINT RUN_DIR RUN CACHE TOKENIZER KIND`.

KIND is `namespace`, `docker`, or `survives`: namespaces whose files outlive them.
Its scripted model works through one task; it stops where a file says so, and says there that it has.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import numpy as np

from actors.agent.chat import ChatTokenizer
from actors.episodes.sandbox_actor import SandboxActor
from actors.policy import Request, Sampled
from protocol.config import Settings
from sandbox.base import Backend
from sandbox.keeper.containers import KeptDockerBackend
from sandbox.keeper.kept import KeptBackend
from sandbox.tasks.micro import make_tasks
from sandbox.tasks.task import Task

TASKS = {task.task_id: task for task in make_tasks(4, seed=1, difficulty=0, split="train")}


def fix_of(task: Task) -> tuple[str, str, str]:
    """The solution: a path, and a line of it before and after."""
    path = next(line[6:] for line in task.gold_patch.splitlines() if line.startswith("+++ b/"))
    old, new = (
        next(line[1:] for line in task.gold_patch.splitlines() if line[0] == sign and line[:3] != 3 * sign)
        for sign in "-+"
    )
    return path, old, new


def turns_of(task: Task) -> list[str]:
    """Commands that each leave a trace when they are run, then the solution."""
    path, old, new = fix_of(task)
    commands = [
        "echo one >> /tmp/trace; (setsid sleep 600 &) ; true",
        f"open {path}",
        "echo two >> /tmp/trace; while [ -e /tmp/hold ]; do sleep 0.1; done",
        "scroll down",
        f"replace {path} '{old}' '{new}'",
        "cat /tmp/trace; pgrep -c sleep",
        "submit",
    ]
    return [f"```command\n{command}\n```" for command in commands]


class Waiting:
    """A `Policy`: the turn is told by the tokens of the history, so it outlives this process. Every sampled token has
    its own log-prob. Waits in a turn for as long as the file `hold-TURN` is there."""

    def __init__(self, tokenizer: ChatTokenizer, run_dir: Path, turns: list[str]) -> None:
        self._tokenizer, self._run_dir, self._turns = tokenizer, run_dir, turns

    async def generate(self, request: Request) -> Sampled:
        history = self._tokenizer.decode(request.token_ids, keep_special=True)
        turn = sum(text in history for text in self._turns)
        with (self._run_dir / "asked").open("a") as asked:
            asked.write(f"{turn}\n")
        while (self._run_dir / f"hold-{turn}").exists():  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        ids = np.append(self._tokenizer.encode(self._turns[turn]), np.int32(request.stop_token_ids[0]))
        logprobs = -np.arange(1, len(ids) + 1, dtype=np.float32) / (turn + 1)
        return Sampled(
            token_ids=ids, logprobs=logprobs, versions=np.full(len(ids), 5 + turn, np.int32), finish_reason="stop"
        )

    async def close(self) -> None:
        """Nothing is open."""


async def main() -> None:
    """Until there are no more leases."""
    endpoint, run_dir, run, cache, tokenizer_dir, kind = sys.argv[1], Path(sys.argv[2]), *sys.argv[3:]
    tokenizer = ChatTokenizer.load(Path(tokenizer_dir))
    settings = Settings.model_validate(
        {
            "tasks": {"cache_dir": cache},
            "actors": {"heartbeat_s": 0.2, "trajectory_log_share": 1.0},
            "episode": {"max_turn_tokens": 400, "max_turns": 12},
            "sandbox": {"survive_restart": kind == "survives"},
        }
    )
    task = next(iter(TASKS.values()))
    kept = KeptBackend(run, "actor-0", run_dir / "keeper.log")
    backend: Backend = KeptDockerBackend(run, kept) if kind == "docker" else kept
    await backend.probe()
    policy = Waiting(tokenizer, run_dir, turns_of(task))
    actor = SandboxActor(settings, "actor-0", 4, endpoint, policy, backend, TASKS, tokenizer, None, run_dir, run=run)
    (run_dir / "began").write_text(str(time.time()))
    try:
        await actor.run()
        (run_dir / "continued").write_text(str(actor.status()["episodes_continued"]))
    finally:
        await backend.close()


if __name__ == "__main__":
    asyncio.run(main())
