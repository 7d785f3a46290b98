"""What does asynchrony give the whole system? The same seeds with `--max-staleness 0` and with the default, every part
real.

Micro tasks whose hidden tests wait, each run anew: log-normal with the paper's heavy tail, median 5 minutes scaled
down to 5 seconds and cut at eight times that. 24 at once finish about 3 episodes a second, less than half of what two
cores can do, so the waits are the bottleneck, as real repositories are. Groups without signal are kept: what filters
remove depends on the policy, not on the mode.

`async_over_sync_x` compares trained trajectories a minute between the first and the last measured step. `bound_share`
is the share of that time that the asynchronous run's busiest stage worked (actors: episodes that run, of those that
may; learner: time not spent waiting), which is how much of that stage's own speed the whole reached. A run is stopped
after its last measured step: at its planned end nothing new would be leased.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.report import parser, report
from sandbox.tasks.micro import TEST_FILE, make_tasks
from sandbox.tasks.task import Task

ROOT = Path(__file__).parent.parent
MEDIAN_S, SIGMA, CUT = 5.0, 0.8, 8.0
NUM_ACTORS = BATCH = 24
_DEADLINE_S, _STOP_S = 1500, 120
_WAIT = f"""\
import random
import time

time.sleep(min(random.SystemRandom().lognormvariate(0.0, {SIGMA}), {CUT}) * {MEDIAN_S})
"""

Records = list[dict[str, Any]]


def main() -> None:
    """Run both modes and report."""
    arguments = parser(__doc__)
    arguments.add_argument("--save", action="store_true", help="write benchmarks/results/asynchrony.json")
    options = arguments.parse_args()
    steps = {"sync": 2, "async": 3} if options.quick else {"sync": 5, "async": 13}
    with tempfile.TemporaryDirectory(prefix="longhaul-bench-") as directory:
        tasks = Path(directory) / "waiting.jsonl"
        write_tasks(tasks, 64)
        waiting = run(Path(directory) / "sync", tasks, steps["sync"], "--max-staleness", "0")
        free = run(Path(directory) / "async", tasks, steps["async"])
    rates = trained_per_min(waiting), trained_per_min(free)
    figures = {
        "async_over_sync_x": rates[1] / rates[0] if None not in rates else None,
        "bound_share": busiest_share(free),
        "trained_per_min_sync": rates[0],
        "trained_per_min_async": rates[1],
    }
    settings = {"num_actors": NUM_ACTORS, "batch": BATCH, "steps": steps, "median_wait_s": MEDIAN_S, "sigma": SIGMA}
    report("asynchrony", figures, settings, save=options.save)


def write_tasks(path: Path, count: int) -> None:
    """Micro tasks in the project's own format; the judge's run of the hidden tests waits first."""
    with path.open("wb") as file:
        for task in make_tasks(count, seed=0, difficulty=0, split="train"):
            file.write(msgspec.json.encode(_waiting(task)) + b"\n")


def _waiting(task: Task) -> Task:
    tests = task.test_files | {TEST_FILE: _WAIT + (task.test_files[TEST_FILE] or "")}
    return msgspec.structs.replace(task, test_files=tests)


def run(run_dir: Path, tasks: Path, steps: int, *flags: str) -> Records:
    """The metrics of one run of the whole system up to its step number `steps`."""
    command = [
        *(sys.executable, "launch.py", "--run-dir", str(run_dir), "--steps", "1000"),
        *("--tasks.source", str(tasks), "--sandbox.backend", "namespace", "--network.dashboard-port", "0"),
        *("--num-actors", str(NUM_ACTORS), "--replay.batch", str(BATCH), "--replay.group-size", "4"),
        *("--replay.keep-no-signal", "--sandbox.max-grading", str(NUM_ACTORS), "--checkpoint.every", "0"),
        *("--checkpoint.every-s", "0"),
        *("--start-timeout-s", "900", *flags),
    ]
    launcher = subprocess.Popen(command, cwd=ROOT, stdout=sys.stderr)
    try:
        deadline = time.monotonic() + _DEADLINE_S
        while len(steps_of(records := read_metrics(run_dir))) < steps:
            if launcher.poll() is not None:
                raise SystemExit(f"the run in {run_dir.name} mode ended early, with status {launcher.returncode}")
            if time.monotonic() > deadline:
                raise SystemExit(f"the run in {run_dir.name} mode took no {steps} steps in {_DEADLINE_S} s")
            time.sleep(0.2)
    finally:
        launcher.send_signal(signal.SIGINT)
        launcher.wait(timeout=_STOP_S)
    return records


def read_metrics(run_dir: Path) -> Records:
    """The whole lines that a run has written so far."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def steps_of(records: Records) -> Records:
    """The records of optimizer steps."""
    return [record for record in records if record["kind"] == "step"]


def trained_per_min(records: Records) -> float | None:
    """Trajectories trained on per minute, between the first step and the last."""
    steps = steps_of(records)
    seconds = steps[-1]["time"] - steps[0]["time"]
    return 60 * sum(step["num_trajectories"] for step in steps[1:]) / seconds if seconds else None


def busiest_share(records: Records) -> float | None:
    """Share of the time between the first step and the last that the busiest stage worked."""
    steps = steps_of(records)
    first, last = steps[0]["time"], steps[-1]["time"]
    samples = [r for r in records if r["kind"] == "system" and first <= r["time"] <= last]
    running = [r["actors.episodes_running"] for r in samples if r.get("actors.episodes_running") is not None]
    if not running or last == first:
        return None
    learner = 1 - sum(step["wait_s"] for step in steps[1:]) / (last - first)
    return max(sum(running) / len(running) / NUM_ACTORS, learner)


if __name__ == "__main__":
    main()
