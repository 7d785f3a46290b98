"""How fast is the whole loop, and what does it need? Launches the default run and reads its own records.

    python -m benchmarks.loop [--quick] [--num-actors 512] [--steps 20]

Memory is the proportional set size of every process of the run together, sandboxes included, sampled twice a second.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.report import parser, report

ROOT = Path(__file__).parent.parent
_SAMPLE_S = 0.5
_DEADLINE_S = 1800


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
            peak = _peak_memory_until_exit(launcher)
        finally:
            launcher.terminate()
            launcher.wait(timeout=60)
        if launcher.returncode != 0:
            raise SystemExit(f"the run failed with status {launcher.returncode}")
        figures = _figures(run_dir, started_at) | {"peak_memory_gib": peak, "num_actors": float(options.num_actors)}
    report("loop", figures, {"steps": steps, "quick": options.quick}, save=not options.quick)


def _figures(run_dir: Path, started_at: float) -> dict[str, float | None]:
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if record["kind"] == "step"]
    summary: dict[str, Any] = json.loads((run_dir / "summary.json").read_text())
    between = steps[-1]["time"] - steps[0]["time"]
    return {
        "first_step_s": steps[0]["time"] - started_at,
        "steps_per_min": 60 * (len(steps) - 1) / between if between else None,
        **{name: summary.get(name) for name in ("episodes_per_s", "generated_tok_s", "learner_tok_s")},
        **{name: summary.get(name) for name in ("learner_wait_share", "generator_wait_share")},
    }


def _peak_memory_until_exit(launcher: subprocess.Popen[bytes]) -> float:
    """Largest sum of the proportional set sizes of the launcher and all below it, in GiB."""
    peak = 0
    deadline = time.monotonic() + _DEADLINE_S
    while launcher.poll() is None and time.monotonic() < deadline:
        peak = max(peak, _memory_of_tree(launcher.pid))
        time.sleep(_SAMPLE_S)
    return peak / (1 << 30)


def _memory_of_tree(pid: int) -> int:
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            with contextlib.suppress(OSError):  # it ended meanwhile
                total += _proportional_set_size(process.pid)
    return total


def _proportional_set_size(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    main()
