"""Does an agent from outside learn what the built-in loop learns? The tiny model, the same tasks, steps and batches.

    python -m benchmarks.gateway.learning [--steps 24] [--minutes 60] [--seed 0] [--folder DIR] [--save]

From one model (rejection fine-tuning of the base model, through the built-in loop) RL stage 1 runs twice: with the
built-in loop, and with `configs/agents/thirty_lines.py`, thirty lines around the `openai` package inside the sandbox.
All models are then scored on held-out tasks by the built-in loop, the agent's also by the agent itself.

What a folder already holds is not run again, and a run that was stopped goes on from its last step: after `--minutes`
the benchmark stops in order (status 3), and the same command goes on.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from statistics import fmean

from actors.harnesses.install import python_packages
from benchmarks.learning import BASE, ROOT, is_whole, score
from benchmarks.report import parser, report
from cluster.run_files import newest_step
from cluster.stages import newest_model

CACHE = Path("~/.cache/longhaul")
TO_STOP_S = 100.0
GOES_ON = 3  # exit status: not done, the same command goes on
AGENT = "configs/agents/thirty_lines.toml"


def main() -> None:
    arguments = parser(__doc__, quick="two small steps of each")
    arguments.add_argument("--save", action="store_true", help="write benchmarks/results/gateway_learning.json")
    arguments.add_argument("--steps", type=int, default=24, help="of reinforcement learning (%(default)s)")
    arguments.add_argument("--batch", type=int, default=32, help="episodes of a step (%(default)s)")
    arguments.add_argument("--minutes", type=float, default=60, help="stop in order after so long (%(default)s)")
    arguments.add_argument("--seed", type=int, default=0, help="of the runs (%(default)s)")
    arguments.add_argument("--folder", type=Path, help="where runs are kept, to continue later (default: nowhere)")
    options = arguments.parse_args()
    steps, batch = (2, 16) if options.quick else (options.steps, options.batch)
    until = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory(prefix="longhaul-bench-") as directory:
        folder = options.folder or Path(directory)
        figures, details = _compare(folder, [f"--seed={options.seed}"], steps, batch, until, options.quick)
    settings = {"steps": steps, "batch": batch, "seed": options.seed, "quick": options.quick, "agent": AGENT}
    report("gateway_learning", figures, settings, details=details, save=options.save)


def _compare(
    folder: Path, seed: list[str], steps: int, batch: int, until: float, quick: bool
) -> tuple[dict[str, float | None], dict[str, object]]:
    few = ["--steps=2", "--num-actors=64", "--replay.batch=16"] if quick else []
    _train(folder / "rft", "configs/micro/rft.toml", [f"--model.path={BASE}", *seed, *few], until)
    start = newest_model(folder / "rft")
    same = [f"--model.path={start}", *seed, f"--steps={steps}", f"--replay.batch={batch}", "--num-actors=32"]
    _train(folder / "built_in", "configs/micro/rl1.toml", same, until)
    agent = _agent_flags()
    _train(folder / "agent", AGENT, [*same, *agent], until)
    models = {"start": start, **{name: newest_model(folder / name) for name in ("built_in", "agent")}}
    figures: dict[str, float | None] = {}
    details: dict[str, object] = {}
    for name, model in models.items():
        _check_time(until)
        scored = score(model, folder / f"eval-{name}", quick)
        figures |= {f"{name}_pass1": scored.mean, f"{name}_pass1_se": scored.se}
    for name in ("built_in", "agent"):
        details[name] = _halves(folder / name)
    figures["agent_minus_built_in_pass1"] = (figures["agent_pass1"] or 0.0) - (figures["built_in_pass1"] or 0.0)
    return figures, details


def _agent_flags() -> list[str]:
    """Where the agent finds itself and its package, installed once."""
    site = python_packages(CACHE, "openai", [f"openai=={version('openai')}"])
    return [f'--agent.binds=["{ROOT}/configs/agents:/opt/agent", "{site}/site:/opt/site"]']


def _train(run_dir: Path, config: str, flags: list[str], until: float) -> None:
    """One training run, from where it was stopped; SystemExit when the time is over or the run fails."""
    if is_whole(run_dir):
        return
    if not newest_step(run_dir):
        shutil.rmtree(run_dir, ignore_errors=True)  # stopped before its first step
    goes_on = ["--resume=auto"] if run_dir.exists() else []
    command = [sys.executable, "launch.py", f"--config={config}", *flags, f"--run-dir={run_dir}", *goes_on]
    with subprocess.Popen([*command, "--network.dashboard-port=0"], cwd=ROOT, stdout=sys.stderr) as process:
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            process.wait(TO_STOP_S)
    if not is_whole(run_dir):
        _check_time(until)
        raise SystemExit(f"{' '.join(command)} failed with status {process.returncode}")


def _check_time(until: float) -> None:
    if time.monotonic() > until:
        print("the time is over; the same command goes on", file=sys.stderr)
        raise SystemExit(GOES_ON)


def _halves(run_dir: Path) -> dict[str, float]:
    """Mean reward of what was trained on, by halves of the run."""
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    rewards = [record["reward_mean"] for record in records if record["kind"] == "step"]
    middle = len(rewards) // 2
    return {"first_half": round(fmean(rewards[:middle]), 3), "second_half": round(fmean(rewards[middle:]), 3)}


if __name__ == "__main__":
    main()
