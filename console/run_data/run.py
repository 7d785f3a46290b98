"""A run from its directory: what it is, whether it lives, and what it does now, in one sentence."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from console.run_data.held_out import held_out
from console.run_data.index import Index
from console.run_data.metrics import Line, Metrics
from protocol.errors import ConfigError

_SILENT_S = 20.0


class Run:
    """One run directory, over or live."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.metrics = Metrics(directory / "metrics.jsonl")
        self.index = Index(directory)

    @staticmethod
    def open(directory: Path) -> Run:
        """Raises `ConfigError` where no run is."""
        Run.check(directory)
        return Run(directory)

    @staticmethod
    def check(directory: Path) -> Mapping[str, Any]:
        """The settings of a run. Raises `ConfigError` where no run is."""
        if not (directory / "settings.json").is_file() and not (directory / "metrics.jsonl").is_file():
            raise ConfigError(
                f"{directory}: expected a run directory (with settings.json and metrics.jsonl), found none",
                kind="run_dir",
            )
        return _read_object(directory / "settings.json")

    @property
    def name(self) -> str:
        """The directory's own."""
        return self.directory.resolve().name

    @property
    def settings(self) -> Mapping[str, Any]:
        """As they were resolved."""
        return _read_object(self.directory / "settings.json")

    @property
    def is_evaluation(self) -> bool:
        """Whether it scores only, without a learner."""
        return self.settings.get("phase") == "eval"

    @property
    def model_path(self) -> str:
        """Of the directory with the tokenizer; empty where it is not known."""
        model = self.settings.get("model")
        return str(model.get("path", "")) if isinstance(model, Mapping) else ""

    @property
    def group_size(self) -> int:
        """Members of a group; 0 where it is not known."""
        replay = self.settings.get("replay")
        size = replay.get("group_size") if isinstance(replay, Mapping) else None
        return size if isinstance(size, int) else 0

    @property
    def summary(self) -> Mapping[str, float]:
        """The figures at its end; empty before."""
        read = _read_object(self.directory / "summary.json")
        return {name: float(value) for name, value in read.items() if isinstance(value, int | float)}

    @property
    def held_out(self) -> list[tuple[int, float]]:
        """Scores of its checkpoints on held-out tasks, by step."""
        return held_out(self.directory)

    def state(self, now: float | None = None) -> str:
        """See `state_of`."""
        return state_of(self.directory, self.metrics, now)

    def sentence(self) -> str:
        """What it does now, or did."""
        return describe(self.state(), self.metrics, self.settings, self.summary)


def state_of(directory: Path, metrics: Metrics, now: float | None = None) -> str:
    """`live`, `over` (it wrote its summary), `silent` (neither that nor a sample for a while), `starting`."""
    last = metrics.last_time
    ended = directory / "summary.json"
    if ended.is_file() and ended.stat().st_mtime >= last:
        return "over"
    if not last:
        return "starting"
    return "live" if (now or time.time()) - last < _SILENT_S else "silent"


def describe(state: str, metrics: Metrics, settings: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """One sentence: `The learner waits for the generators: KV cache 97 % full.`"""
    system, steps = metrics.newest, metrics.records
    if state == "starting":
        return "The run starts: no process has said anything yet."
    num_steps = f"{len(steps)} of {settings.get('steps', '?')} steps"
    if settings.get("phase") == "eval":
        num_steps = f"{system.get('actors.episodes_finished', 0):.0f} episodes"
    if state == "over" and settings.get("phase") == "eval":
        seconds = f" in {_duration(summary['seconds'])}" if "seconds" in summary else ""
        return f"The evaluation is over: {summary.get('episodes', 0):.0f} episodes{seconds}."
    if state == "over":
        seconds = f" in {_duration(summary['seconds'])}" if "seconds" in summary else ""
        waited = summary.get("learner_wait_share")
        share = f"; the learner waited {100 * waited:.0f} % of the time for batches" if waited else ""
        return f"The run is over: {num_steps}, {summary.get('episodes', 0):.0f} episodes{seconds}{share}."
    if state == "silent":
        return f"The run has written nothing for {_duration(time.time() - metrics.last_time)}, after {num_steps}."
    if system.get("stalled_parts", 0):
        return f"{system['stalled_parts']:.0f} processes do not answer: see Fleet."
    return f"{bottleneck(system, steps)[1]} ({num_steps})"


def bottleneck(system: Line, steps: list[Line]) -> tuple[str, str]:
    """The part that holds the loop up (`generators`, `actors`, `replay`, `learner`, or nothing) and the sentence."""
    running = {name: system.get(f"actors.episodes_{name}", 0.0) for name in _DOING}
    most = max(running, key=lambda name: running[name])
    if not any(running.values()):
        limit = system.get("replay.running_limit")
        held = f": {system.get('replay.ready_groups', 0):.0f} groups are ready" if limit is not None else ""
        return "replay", f"No episode runs{held}."
    last = steps[-1] if steps else {}
    step_s, wait_s = last.get("step_s", 0.0), last.get("wait_s", 0.0)
    what = f"{running[most]:.0f} episodes are {_DOING[most]}"
    if most == "generating" and system.get("generator.kv_used_share", 0.0) > 0.9:
        what += f", KV cache {100 * system['generator.kv_used_share']:.0f} % full"
    part = {"generating": "generators", "queued": "actors"}.get(most, "actors")
    if steps and wait_s < 0.1 * step_s and system.get("replay.buffer_fill", 0.0) >= 1:
        return "learner", f"The learner is the slowest part: a batch is ready before its step ends; {what}."
    first = "The learner waits" if steps else "The learner waits for its first batch"
    where = {"generators": "for the generators", "actors": "for episodes"}[part] if steps else ""
    return part, f"{first} {where}".rstrip() + f": {what}."


_DOING = {
    "queued": "waiting for a place",
    "starting": "starting their sandboxes",
    "generating": "waiting for tokens",
    "executing": "running commands",
    "grading": "being judged",
    "submitting": "being handed in",
}


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _read_object(path: Path) -> Mapping[str, Any]:
    """A JSON object; empty where there is none, or one that is being written."""
    try:
        read = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError, RecursionError):
        return {}
    return read if isinstance(read, dict) else {}
