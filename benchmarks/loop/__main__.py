"""How fast is the whole loop, and what does it need? Launches the default run and reads its own records.

    python -m benchmarks.loop [--quick] [--num-actors 512] [--steps 20]

Memory is the proportional set size of every process of the run together, sandboxes included. Processor time is that
of the same processes between the first step and the last, for each episode that ended then; the part of judgement is
what judging gold patches one by one uses, for the share of episodes that changed something.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from msgspec import Struct

from benchmarks.loop.gradings import processor_ms_of_grading
from benchmarks.loop.processes import memory_bytes, processor_ms
from benchmarks.report import parser, report

ROOT = Path(__file__).parents[2]
_SAMPLE_S = 2.0
_MEMORY_EVERY = 3  # samples: the kernel walks every page table to count it
_DEADLINE_S = 1800


class Seen(Struct):
    """What was seen of a run from outside."""

    peak_memory: int = 0  # bytes
    used: list[tuple[float, Counter[str]]] = []  # time, milliseconds of processor time by part


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--num-actors", type=int, default=512, help="episodes at once (default: %(default)s)")
    arguments.add_argument("--steps", type=int, default=20, help="optimizer steps (default: %(default)s)")
    options = arguments.parse_args()
    steps = 3 if options.quick else options.steps
    with tempfile.TemporaryDirectory(prefix="longhaul-bench-") as directory:
        run_dir = Path(directory) / "run"
        command = [sys.executable, "launch.py", "--num-actors", str(options.num_actors), "--steps", str(steps)]
        command += ["--run-dir", str(run_dir), "--network.dashboard-port", "0"]
        started_at = time.time()
        launcher = subprocess.Popen(command, cwd=ROOT, stdout=sys.stderr)
        try:
            seen = _watch(launcher, run_dir)
        finally:
            launcher.terminate()
            launcher.wait(timeout=60)
        if launcher.returncode != 0:
            raise SystemExit(f"the run failed with status {launcher.returncode}")
        records = _read(run_dir / "metrics.jsonl")
        figures = _figures(run_dir, records, started_at)
        figures |= {"peak_memory_gib": seen.peak_memory / (1 << 30), "num_actors": float(options.num_actors)}
        figures |= _processor_figures(records, _read_all(run_dir / "trajectories"), seen)
    report("loop", figures, {"steps": steps, "quick": options.quick}, save=not options.quick)


def _watch(launcher: subprocess.Popen[bytes], run_dir: Path) -> Seen:
    """Until the run has ended."""
    seen = Seen()
    deadline = time.monotonic() + _DEADLINE_S
    while launcher.poll() is None and time.monotonic() < deadline:
        if len(seen.used) % _MEMORY_EVERY == 0:
            seen.peak_memory = max(seen.peak_memory, memory_bytes(launcher.pid, run_dir))
        seen.used.append((time.time(), processor_ms(launcher.pid, run_dir)))
        time.sleep(_SAMPLE_S)
    return seen


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _read_all(directory: Path) -> list[dict[str, Any]]:
    return [record for path in sorted(directory.glob("*.jsonl")) for record in _read(path)]


def _figures(run_dir: Path, records: list[dict[str, Any]], started_at: float) -> dict[str, float | None]:
    steps = [record for record in records if record["kind"] == "step"]
    summary: dict[str, Any] = json.loads((run_dir / "summary.json").read_text())
    between = steps[-1]["time"] - steps[0]["time"]
    return {
        "first_step_s": steps[0]["time"] - started_at,
        "steps_per_min": 60 * (len(steps) - 1) / between if between else None,
        **{name: summary.get(name) for name in ("episodes_per_s", "generated_tok_s", "learner_tok_s")},
        **{name: summary.get(name) for name in ("learner_wait_share", "generator_wait_share")},
    }


def _processor_figures(
    records: list[dict[str, Any]], episodes: list[dict[str, Any]], seen: Seen
) -> dict[str, float | None]:
    """Milliseconds of processor time for each episode, whole and by part."""
    names = ("cpu_ms_per_episode", *(f"cpu_ms_{part}" for part in ("grading", "sandbox", "generate", "learn", "other")))
    steps = [record["time"] for record in records if record["kind"] == "step"]
    between = [sample for sample in seen.used if steps[0] <= sample[0] <= steps[-1]]
    if len(between) < 2:
        return dict.fromkeys(names)
    (first, before), (last, after) = between[0], between[-1]
    ended = [episode for episode in episodes if first < episode["finished_at"] <= last]
    if not ended:
        return dict.fromkeys(names)
    used = {part: (after[part] - before[part]) / len(ended) for part in after}
    judged = sum(bool(episode["patch"]) for episode in ended) / len(ended)
    grading = judged * asyncio.run(processor_ms_of_grading())
    parts = {
        "grading": grading,
        "sandbox": used.get("sandbox", 0.0) + used.get("actor", 0.0) - grading,
        "generate": used.get("generate", 0.0),
        "learn": used.get("learn", 0.0),
        "other": used.get("replay", 0.0) + used.get("other", 0.0),
    }
    return {"cpu_ms_per_episode": sum(parts.values()), **{f"cpu_ms_{part}": ms for part, ms in parts.items()}}


if __name__ == "__main__":
    main()
