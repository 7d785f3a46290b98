"""A whole run, every part real, of which something is struck whenever it has got over the stroke before.

Engines, ranks and Ray are as they are for a user: the run is what `launch.py` starts, watched from outside through its
process titles, `fleet.json`, `metrics.jsonl` and what it prints. Where the launcher itself is struck, it is launched
again with `--resume auto`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
from msgspec.structs import replace

from benchmarks import ledger
from benchmarks.launched import MEASURED, Launched, title_of
from console.run_data.records import Record, read_record
from sandbox.base import Backend, Limits
from sandbox.curation.gold import gold_patch
from sandbox.datasets.loading import load_tasks
from sandbox.judgement.grading import grade
from sandbox.namespace.backend import NamespaceBackend
from sandbox.tasks.task import Task

FLAGS = {
    "--num-actors": 32,
    "--steps": 10**6,
    "--replay.batch": 16,
    "--replay.group-size": 4,
    "--tasks.count": 32,
    "--checkpoint.every": 2,
    "--actors.trajectory-log-share": 1,
    "--restarts-per-hour": 1000,
    "--stuck-after-s": 15,
    "--learner.step-timeout-s": 30,
    "--network.dashboard-port": 0,
    "--sandbox.backend": "namespace",
}
SWITCHES = ("--sandbox.survive-restart",)
READY_S = 300.0
_MOST_JUDGED = 200
_JUDGE = "chaos-judge"
_ALL_READY = "processes are ready"
_AGAIN = "the learner is at work again"


class WholeRun:
    """One run in all its lives.

    Attributes:
        recoveries: seconds from a stroke until the part worked again, by role; `run`: until the next step of a life
            that `--resume auto` began.
        kinds: what was struck and how, with how often.
    """

    def __init__(self, directory: Path, seed: int) -> None:
        self.directory = directory / "run"
        self.recoveries: defaultdict[str, list[float]] = defaultdict(list)
        self.kinds: Counter[str] = Counter()
        self.left_behind: list[str] = []
        self._output = directory / "output.txt"
        self._temporary = Path(tempfile.mkdtemp(prefix="chaos-"))  # a short path: sockets are in it
        self._random = random.Random(seed)
        self._launched: list[Launched] = []  # one after the other
        self._strokes: dict[str, Callable[[], None]] = {
            "generator killed": lambda: self._kill_part("generator", self._at_work("ray::Generator")),
            "engine killed": lambda: self._kill_part("generator", self._engines()),
            "engine stopped": lambda: self._kill_part("generator", self._engines(), signal.SIGSTOP),
            "learner rank killed": lambda: self._strike_learner(signal.SIGKILL),
            "learner rank killed while it saves": self._strike_saving_learner,
            "learner rank stopped": lambda: self._strike_learner(signal.SIGSTOP),
            "sandbox actor killed": lambda: self._kill_part("actor", self._at_work("ray::SandboxActor")),
            "sandbox actor stopped": lambda: self._kill_part(
                "actor", self._at_work("ray::SandboxActor"), signal.SIGSTOP
            ),
            "replay killed": lambda: self._kill_part("replay", self._at_work("ray::ReplayBuffer")),
            "raylet killed": lambda: self._end_life(self._of_ray("raylet")),
            "gcs killed": lambda: self._end_life(self._of_ray("gcs_server")),
            "launcher killed": lambda: self._end_life(psutil.Process(self._run.process.pid)),
        }

    def run(self, seconds: float, only: list[str]) -> None:
        """Strike for so long, every kind once before any comes again; then two steps without, SIGTERM, and look."""
        try:
            self._launch()
            until = time.monotonic() + seconds
            bag: list[str] = []
            while time.monotonic() < until:
                if not bag:
                    bag = [name for name in self._strokes if not only or name in only]
                    self._random.shuffle(bag)
                kind = bag.pop()
                time.sleep(self._random.uniform(0.0, 3.0))  # anywhere within a step
                print(f"{kind} ...", file=sys.stderr, flush=True)
                began = time.monotonic()
                self._strokes[kind]()
                self._wait_for_steps(1)
                self.kinds[kind] += 1
                print(f"{kind}: a step again after {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)
            self._wait_for_steps(2)
            self._run.process.send_signal(signal.SIGTERM)
            status = self._run.wait_for_end(READY_S)
            if status != 128 + signal.SIGTERM:
                raise RuntimeError(f"the run ended with status {status}:\n{self._run.text()}")
            self.left_behind = sorted({left for run in self._launched for left in run.leftovers()})
        finally:
            for run in self._launched:
                run.close()
            shutil.rmtree(self._temporary, ignore_errors=True)

    # --- strokes --------------------------------------------------------------------------------------------------

    def _kill_part(self, role: str, victims: list[psutil.Process], how: int = signal.SIGKILL) -> None:
        """One that the supervisor starts again."""
        victim = self._random.choice(victims)
        before = self._num_restarts()
        began = time.monotonic()
        victim.send_signal(how)
        self._wait(lambda: self._num_restarts() > before and self._all_work(), f"the {role} to be back")
        self.recoveries[role].append(time.monotonic() - began)

    def _strike_learner(self, how: int) -> None:
        before = self._run.text().count(_AGAIN)
        began = time.monotonic()
        self._random.choice(self._at_work("ray::Learner")).send_signal(how)
        self._wait(lambda: self._run.text().count(_AGAIN) > before, "the learner to be at work again")
        self.recoveries["learner"].append(time.monotonic() - began)

    def _strike_saving_learner(self) -> None:
        """While a checkpoint is half there."""
        folder = self.directory / "checkpoints"
        whole = set(folder.glob("step-*"))
        self._wait(lambda: any(p.name not in {w.name for w in whole} for p in folder.iterdir()), "a checkpoint")
        self._strike_learner(signal.SIGKILL)

    def _end_life(self, victim: psutil.Process) -> None:
        """What ends this life of the run. The launcher begins the next one; where it is gone itself, we do."""
        began = time.monotonic()
        lives = self._run.text().count(_ALL_READY)
        victim.kill()
        if victim.pid == self._run.process.pid:
            self._run.wait_for_end(READY_S)
            self._launch()
        self._wait(lambda: self._run.text().count(_ALL_READY) > lives, "the next life to begin")
        self._wait_for_steps(1)
        self.recoveries["run"].append(time.monotonic() - began)

    # --- the run from outside -------------------------------------------------------------------------------------

    @property
    def _run(self) -> Launched:
        return self._launched[-1]

    def _launch(self) -> None:
        flags = FLAGS | {"--run-dir": self.directory}
        if (self.directory / "settings.json").exists():
            flags["--resume"] = "auto"
        arguments = [*SWITCHES, *(word for pair in flags.items() for word in pair)]
        self._launched.append(Launched(self.directory, arguments, self._temporary, self._output))
        self._wait_for_steps(1)

    def _wait_for_steps(self, number: int) -> None:
        before = len(self._run.steps())
        self._wait(lambda: len(self._run.steps()) >= before + number, f"{number} more steps")

    def _wait(self, condition: Callable[[], object], what: str) -> None:
        self._run.wait(condition, what, READY_S)

    def _at_work(self, title: str) -> list[psutil.Process]:
        self._wait(lambda: self._run.titled(title), title)
        return self._run.titled(title)

    def _engines(self) -> list[psutil.Process]:
        """Of each generator, the largest process below it."""
        generators = self._at_work("ray::Generator")
        self._wait(lambda: any(generator.children() for generator in generators), "an engine")
        below = [generator.children(recursive=True) for generator in generators]
        return [max(found, key=lambda process: process.memory_info().rss) for found in below if found]

    def _of_ray(self, program: str) -> psutil.Process:
        return next(child for child in self._run.titled("") if Path(title_of(child)).name == program)

    def _fleet(self) -> list[dict[str, Any]]:
        with contextlib.suppress(OSError, ValueError):
            found: list[dict[str, Any]] = json.loads((self.directory / "fleet.json").read_text())["processes"]
            return found
        return []

    def _num_restarts(self) -> int:
        return sum(process["restarts"] for process in self._fleet())

    def _all_work(self) -> bool:
        return bool(fleet := self._fleet()) and all(process["state"] == "working" for process in fleet)

    # --- what came of it ------------------------------------------------------------------------------------------

    def figures(self) -> dict[str, float | None]:
        """Out of the run directory alone."""
        state = ledger.state_of(self.directory)
        again = _taken_again(self._run.steps())
        judged, differing = asyncio.run(_judged_again(self.directory))
        return {
            "faults": self.kinds.total(),
            "kinds": len(self.kinds),
            "episodes_leased": state.tally.leased,
            "lost": ledger.lost(state),
            "trained_twice": ledger.trained_twice(self.directory),
            "judged_again": judged,
            "judged_differently": differing,
            "orphans": len(self.left_behind),
            "went_on_from_snapshots": _count(self.directory / "logs", "goes on from its snapshot"),
            "steps_taken_again": len(again),
            "resume_bit_equal": float(all(again)) if again else None,
        }


def _count(logs: Path, words: str) -> int:
    return sum(path.read_text(errors="replace").count(words) for path in logs.glob("sandbox-actor-*.log"))


def _taken_again(steps: list[dict[str, Any]]) -> list[bool]:
    """Of every step that was taken once more: whether all that it computed came out as before."""
    first: dict[int, dict[str, Any]] = {}
    equal = []
    for record in steps:
        computed = {name: value for name, value in record.items() if name not in MEASURED}
        if (number := record["step"]) in first:
            equal.append(computed == first[number])
        first.setdefault(number, computed)
    return equal


async def _judged_again(run_dir: Path) -> tuple[int, int]:
    """How many different patches were judged once more, and how many of them some episode's reward contradicts."""
    tasks = {task.task_id: task for task in load_tasks(ledger.settings_of(run_dir).tasks)}
    rewards: defaultdict[tuple[str, str], set[bool]] = defaultdict(set)
    for record in _records(run_dir):
        if record.patch and not record.tampered:
            rewards[record.task_id, record.patch].add(record.resolved)
    chosen = random.Random(0).sample(sorted(rewards), min(len(rewards), _MOST_JUDGED))
    backend = NamespaceBackend(_JUDGE)
    try:
        verdicts = [await _judge(backend, tasks[task_id], diff, run_dir) for task_id, diff in chosen]
    finally:
        await backend.close()
    return len(chosen), sum(rewards[key] != {verdict} for key, verdict in zip(chosen, verdicts, strict=True))


async def _judge(backend: Backend, task: Task, diff: str, cache_dir: Path) -> bool:
    patch = await gold_patch(backend, replace(task, gold_patch=diff), _JUDGE, Limits(), cache_dir)
    verdict = await grade(
        backend, task, patch, run=_JUDGE, lease="again", limits=Limits(), cache_dir=cache_dir, timeout_s=60
    )
    return verdict.resolved


def _records(run_dir: Path) -> Iterator[Record]:
    for path in sorted((run_dir / "trajectories").glob("*.jsonl")):
        for line in path.read_bytes().splitlines(keepends=True):
            if record := read_record(line):
                yield record
