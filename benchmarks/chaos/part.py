"""One process of the run, to be killed: `python -m benchmarks.chaos.part replay|NAME SETTINGS TOKENIZER`.

Says `ready` once it works, on a line of its own.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path

from actors.agent.chat import ChatTokenizer
from actors.episodes.sandbox_actor import SandboxActor
from benchmarks.chaos.script import TellingPolicy
from learner.replay.service.server import ReplayServer
from protocol.config import Settings
from sandbox.backends import KeptFor, open_backend
from sandbox.datasets.loading import load_tasks


def main() -> None:
    """Until there is nothing more to do."""
    name, settings_file, tokenizer_dir = sys.argv[1:]
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    settings = Settings.model_validate_json(Path(settings_file).read_text())
    asyncio.run(_replay(settings) if name == "replay" else _actor(name, settings, Path(tokenizer_dir)))


async def _replay(settings: Settings) -> None:
    assert settings.run_dir is not None
    tasks = [task.ref for task in load_tasks(settings.tasks)]
    server = ReplayServer(settings, tasks, endpoint_of(settings.run_dir), settings.run_dir)
    await server.start()
    print("ready", flush=True)
    await server.run()


async def _actor(name: str, settings: Settings, tokenizer_dir: Path) -> None:
    assert settings.run_dir is not None
    run = run_of(settings.run_dir)
    backend = await open_backend(settings.sandbox, run, KeptFor(name, settings.run_dir / "keeper.log"))
    tokenizer = ChatTokenizer.load(tokenizer_dir)
    tasks = load_tasks(settings.tasks)
    actor = SandboxActor(
        settings,
        name,
        settings.num_actors // 2,
        endpoint_of(settings.run_dir),
        TellingPolicy(tokenizer, tasks, settings.seed),
        backend,
        {task.task_id: task for task in tasks},
        tokenizer,
        None,
        settings.run_dir,
        run=run,
        request_timeout_s=3.0,
    )
    await actor.start()
    print("ready", flush=True)
    try:
        await actor.run()
    finally:
        await backend.close()


def endpoint_of(run_dir: Path) -> str:
    """Where the replay buffer is."""
    return f"ipc://{run_dir}/replay.sock"


def run_of(run_dir: Path) -> str:
    """Name of the run, which labels its sandboxes."""
    return f"chaos-{run_dir.name}"


if __name__ == "__main__":
    main()
