"""`longhaul agents try HARNESS`: one episode of an agent from outside, with every request that it makes."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from actors.agent.chat import ChatTokenizer
from actors.episodes.board import Board
from actors.episodes.episode_runner import Attempt, EpisodeRunner
from actors.gateway.server import Exchange
from actors.policies.scripted import ScriptedPolicy, replay
from actors.policy import Policy
from cluster.command_line.cli import run_command_line
from cluster.files.sources import with_fetched_sources
from protocol.config import Settings
from protocol.errors import ConfigError, LonghaulError
from protocol.messages import Lease, Sampling
from sandbox.backends import open_backend
from sandbox.datasets.loading import load_tasks

_SHOWN = 300  # characters of a message


def main(arguments: Sequence[str], program: str = "longhaul agents try") -> int:
    """Run one episode; 0: it was played to its end, 1: it failed, 2: bad input."""
    parser = argparse.ArgumentParser(
        prog=program, description=__doc__, epilog="Every setting of a run is a flag here, too."
    )
    parser.add_argument("harness", help="as in agent.harness")
    parser.add_argument("--tasks", help="as in tasks.source (default: micro)")
    parser.add_argument("--task", help="id of the task (default: the first)")
    parser.add_argument("--answers", type=Path, help="JSON list of texts that are played instead of a model's")
    parser.add_argument("--bodies", action="store_true", help="show every request's body whole")
    chosen, flags = parser.parse_known_args(arguments)
    flags = [*flags, f"--agent.harness={chosen.harness}"]
    if chosen.tasks is not None:
        flags.append(f"--tasks.source={chosen.tasks}")
    settings, _ = run_command_line(flags, program)
    try:
        return asyncio.run(_try(settings, chosen))
    except ConfigError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    except LonghaulError as error:
        print(f"{program}: the episode failed: {error.label}: {error}", file=sys.stderr)
        return 1


async def _try(settings: Settings, chosen: argparse.Namespace) -> int:
    settings = with_fetched_sources(settings, tell=print)
    tasks = {task.task_id: task for task in load_tasks(settings.tasks)}
    if not tasks or (chosen.task is not None and chosen.task not in tasks):
        raise ConfigError(f"no task {chosen.task!r} in {settings.tasks.source}", kind="task")
    task = tasks[chosen.task] if chosen.task is not None else next(iter(tasks.values()))
    tokenizer = ChatTokenizer.load(Path(settings.model.path), settings.model.template_values())
    printer = _Printer(chosen.bodies)
    async with contextlib.AsyncExitStack() as stack:
        backend = await open_backend(settings.sandbox, "agents-try")
        stack.push_async_callback(backend.close)
        policy = await stack.enter_async_context(_policy(settings, chosen.answers, tokenizer))
        runner = EpisodeRunner(settings, policy, backend, tasks, tokenizer, Board(), "agents-try", printer.show)
        print(f"task {task.task_id}: {_short(task.issue)}")
        await runner.start()
        stack.push_async_callback(runner.stop)
        attempt = await runner.run(_lease(settings, task.task_id))
        _sum_up(attempt, runner.status())
    return 0


@contextlib.asynccontextmanager
async def _policy(settings: Settings, answers: Path | None, tokenizer: ChatTokenizer) -> AsyncIterator[Policy]:
    if answers is not None:
        yield ScriptedPolicy(tokenizer, replay(_texts(answers)))
        return
    import tempfile

    from actors.generator.own_process import GeneratorProcess
    from actors.policies.generator_client import GeneratorClient

    with tempfile.TemporaryDirectory(prefix="longhaul-try-") as directory:
        endpoint = f"ipc://{directory}/generator"
        with GeneratorProcess(settings, "generator", endpoint) as process:
            print(f"loading {settings.model.path} ...")
            client = GeneratorClient([await asyncio.to_thread(lambda: process.endpoint)], settings.generator)
            try:
                yield client
            finally:
                await client.close()


def _texts(path: Path) -> list[str]:
    try:
        texts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"--answers {path}: {error}", kind="answers") from error
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ConfigError(f"--answers {path}: expected a JSON list of texts", kind="answers")
    return texts


def _lease(settings: Settings, task_id: str) -> Lease:
    return Lease(
        lease_id="try",
        episode_id="try/0",
        task_id=task_id,
        group_id="try",
        member=0,
        attempt=0,
        version=0,
        deadline_at=time.time() + settings.episode.wall_time_s,
        sampling=Sampling(temperature=settings.episode.temperature, max_tokens=settings.episode.max_turn_tokens),
        max_turns=settings.episode.max_turns,
        max_context=settings.model.max_context,
    )


class _Printer:
    def __init__(self, bodies: bool) -> None:
        self._bodies = bodies
        self._number = 0

    def show(self, exchange: Exchange) -> None:
        self._number += 1
        print(
            f"\n#{self._number} {exchange.path} {exchange.status}: {len(exchange.body)} bytes, {_asked(exchange.body)}"
        )
        if self._bodies:
            print(exchange.body.decode(errors="replace"))
        if exchange.answer is None:
            print(f"   refused: {exchange.said}")
            return
        answer = exchange.answer
        usage = answer.usage
        print(f"   {usage.prompt} tokens (+{usage.sampled} sampled), ended by {answer.ended}")
        for name, text in (("thinks", answer.reasoning), ("says", answer.content)):
            if text:
                print(f"   {name}: {_short(text)}")
        for call in answer.calls:
            print(f"   calls {call.name}({_short(call.arguments)})")


def _asked(body: bytes) -> str:
    """What stands in a request, in a few words."""
    try:
        fields: Any = json.loads(body)
    except ValueError:
        return "not JSON"
    if not isinstance(fields, dict):
        return "not an object"
    messages = fields.get("messages") or fields.get("input") or []
    tools = fields.get("tools") or []
    count = len(messages) if isinstance(messages, list) else 1
    return f"{count} messages, {len(tools) if isinstance(tools, list) else 0} tools, fields {', '.join(sorted(fields))}"


def _sum_up(attempt: Attempt, status: dict[str, float]) -> None:
    trajectory = attempt.trajectory
    print(f"\nended: {trajectory.end_reason} after {len(trajectory.turns)} turns; resolved: {trajectory.resolved}")
    sampled = sum(turn.end - turn.start for turn in trajectory.turns)
    print(f"tokens: {len(trajectory.token_ids)}, sampled {sampled}, trained {int(trajectory.loss_mask.sum())}")
    print(f"paths: {len(trajectory.branches.leaves())}, drift: {trajectory.drift or 'none'}")
    counted = {name: int(value) for name, value in status.items() if name.startswith("gateway_") and value}
    print(f"gateway: {counted}")
    print(attempt.patch.diff or "the agent changed nothing")


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]} ..."
