"""Released agents, unmodified, from their first request to a judged episode; what the model says is scripted."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from actors.agent.chat import ChatTokenizer
from actors.episodes.board import Board
from actors.episodes.episode_runner import EpisodeRunner
from actors.harnesses.table import RELEASED
from actors.policies.scripted import Script, ScriptedPolicy
from protocol.config import Settings
from protocol.errors import ConfigError, TaskError
from sandbox.base import Backend
from sandbox.curation.injected import inject_faults
from sandbox.curation.recipes import PYTEST
from sandbox.curation.survey import Workshop, open_package
from sandbox.namespace.backend import NamespaceBackend
from sandbox.tasks.task import Task
from tests.actors.episodes.scripted_replay import make_lease
from tests.actors.gateway.history import TEMPLATE
from tests.actors.harnesses.test_foreign import BACKENDS, TASK

pytestmark = pytest.mark.timeout(1800)  # agents and packages come over the network first
CACHE = Path("~/.cache/longhaul").expanduser()
SHELL = {
    "mini-swe-agent": ("bash", "command"),
    "qwen-code": ("run_shell_command", "command"),
    "opencode": ("bash", "command"),
    "claude-code": ("Bash", "command"),
    "codex": ("exec_command", "cmd"),
}
"""Each agent's tool for commands, and its argument."""
PACKAGE = "toolz==1.0.0"
EXTRA = {
    "opencode": {"description": "edit"},
    "claude-code": {"description": "edit"},
    "qwen-code": {"is_background": False},
}


def script_of(name: str, task: Task) -> Script:
    """One command that solves the task, then the end, in the agent's own tools; whatever else it asks is answered."""
    tool, argument = SHELL[name]
    fix = f"git apply <<'END'\n{task.gold_patch}\nEND\n"

    def call(command: str) -> str:
        arguments = {argument: command} | EXTRA.get(name, {})
        return f"I do it.\n<tool_call>\n{json.dumps({'name': tool, 'arguments': arguments})}\n</tool_call>"

    def script(episode_id: str, history: str, turn: int) -> str:
        if f'"name": "{tool}"' not in history:
            return "A small mistake"  # a title, a summary: without tools
        done = history.count(f'<tool_call>\n{{"name": "{tool}"')
        if done == 0:
            return call(fix)
        if name == "mini-swe-agent":
            return call("echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT")
        return "Done."

    return script


async def play(name: str, backend: Backend, tmp_path: Path, tokenizer: ChatTokenizer, task: Task = TASK) -> Any:
    if not (await backend.probe()).available:
        await backend.close()
        pytest.skip(f"no {backend.name} sandboxes here")
    (tmp_path / "cache").mkdir()
    for name_of_part in ("agents", "environments", "sdists"):
        (CACHE / name_of_part).mkdir(parents=True, exist_ok=True)
        (tmp_path / "cache" / name_of_part).symlink_to(CACHE / name_of_part)
    settings = Settings.model_validate(
        {
            "model": {"max_context": 400_000},
            "tasks": {"cache_dir": tmp_path / "cache"},
            "agent": {"harness": name},
            "episode": {"max_turn_tokens": 4000, "wall_time_s": 120, "max_turns": 12},
            "sandbox": {"memory_mib": 4096, "max_processes": 512, "disk_mib": 512},
        }
    )
    tools = tokenizer.with_template(TEMPLATE, "<|im_end|>", ["<|im_start|>", "<|im_end|>"])
    scripted = ScriptedPolicy(tools, script_of(name, task))
    runner = EpisodeRunner(settings, scripted, backend, {task.task_id: task}, tools, Board(), "released-test")
    try:
        await runner.start()
    except ConfigError as error:
        await backend.close()
        pytest.skip(f"{name} cannot be had: {error}")
    lease = make_lease(0, task.task_id)
    lease = msgspec.structs.replace(
        lease, max_turns=12, max_context=400_000, sampling=msgspec.structs.replace(lease.sampling, max_tokens=4000)
    )
    try:
        async with asyncio.timeout(300):
            return await runner.run(lease), runner.status()
    finally:
        await runner.stop()
        await backend.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", list(RELEASED))
async def test_an_unmodified_agent_solves_a_task_in_a_sandbox_without_network(
    name: str, tmp_path: Path, tokenizer: ChatTokenizer
) -> None:
    attempt, status = await play(name, NamespaceBackend("released-test"), tmp_path, tokenizer)
    trajectory = attempt.trajectory
    assert trajectory.resolved, attempt.verdict
    assert trajectory.end_reason == "submitted"
    assert set(trajectory.drift) <= ({"foreign"} if name == "qwen-code" else set())  # it opens with words of its own
    sampled = sum(turn.end - turn.start for turn in trajectory.turns)
    assert sampled == int(trajectory.loss_mask.sum()) == status["gateway_sampled_tokens"]
    paths = [trajectory.token_ids[trajectory.branches.path(leaf)] for leaf in trajectory.branches.leaves()]
    assert len(paths) == (2 if name == "opencode" else 1)  # a title, asked aside
    assert sum(TASK.issue.strip()[:40] in tokenizer.decode(path) for path in paths) >= 1


@pytest.fixture(scope="module")
def released_task() -> Task:
    """A fault in a released package, noticed by the package's own tests."""

    async def make() -> Task:
        async with asyncio.timeout(900):
            backend = NamespaceBackend("released-task")
            try:
                shop = Workshop(backend=backend, cache_dir=CACHE, run="released-task", requirements=(PYTEST,))
                package = await open_package(shop, PACKAGE)
                tasks = [task async for task in inject_faults(shop, package, 1, 0)]
            finally:
                await backend.close()
            return tasks[0]

    try:
        return asyncio.run(make())
    except (ConfigError, TaskError) as error:
        pytest.skip(f"{PACKAGE} cannot be had: {error}")


@pytest.mark.slow
@pytest.mark.parametrize("kind", BACKENDS)
async def test_mini_swe_agent_mends_a_released_package(
    kind: Any, released_task: Task, tmp_path: Path, tokenizer: ChatTokenizer
) -> None:
    attempt, status = await play("mini-swe-agent", kind("released-test"), tmp_path, tokenizer, released_task)
    trajectory = attempt.trajectory
    assert trajectory.resolved, attempt.verdict
    assert not trajectory.drift and len(trajectory.turns) == 2
    sampled = sum(turn.end - turn.start for turn in trajectory.turns)
    assert sampled == int(trajectory.loss_mask.sum()) == status["gateway_sampled_tokens"]
