"""What does each objective do to `micro`? Held-out pass@1 before and after as many steps of each, by whole runs.

    python -m benchmarks.objectives [NAME ...] [--quick] [--save] [--seeds 3] [--steps 20] [--model DIR] [--folder DIR]

Every objective is launched as a user would, by configs/objectives/NAME.toml, from one model, and its last model is
scored by `--phase eval` on names never seen in training. Without names: all of the table, which takes hours. What a
folder already holds is not run again, so an interrupted run goes on.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import tempfile
from argparse import Namespace
from pathlib import Path
from statistics import fmean

from msgspec import Struct

from benchmarks.report import parser, report
from cluster.evaluation.scores import Estimate
from cluster.run_files import newest_step
from cluster.stages import newest_model
from protocol.objectives import known_objective, objectives

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs" / "objectives"
BASE = ROOT / "assets" / "tiny"
_DEADLINE_S = 2400
_QUICK_NAMES = ("dapo", "rloo")
QUICK_RUN = ["--num-actors=64", "--replay.batch=16"]
QUICK_SCORE = ["--tasks.count=16", "--eval.runs=2", "--num-actors=32"]


class Trained(Struct, frozen=True, kw_only=True):
    """One objective, one seed."""

    score: Estimate
    minutes: float  # of training, starts included
    clipped_share: float  # tokens beyond eps_low or eps_high, mean over steps
    entropy: float  # of the last step, nats
    gradient_norm: float  # median over steps, before clipping


def main() -> None:
    options = _options()
    names = options.names or (_QUICK_NAMES if options.quick else list(objectives()))
    if options.teacher is None:
        names = [name for name in names if name != "distill"]
    steps = 2 if options.quick else options.steps
    num_seeds = 1 if options.quick else options.seeds
    with tempfile.TemporaryDirectory(prefix="longhaul-bench-") as directory:
        folder = options.folder or Path(directory)
        before = _score(options.model, folder / "eval-before", options.quick)
        results = {
            name: [_train(name, seed, steps, options, folder / f"{name}-{seed}") for seed in range(num_seeds)]
            for name in names
        }
    figures = {"before_pass1": before.mean, "before_pass1_se": before.se} | _summarize(results)
    _print_table(before, results)
    settings = {"steps": steps, "seeds": num_seeds, "quick": options.quick, "model": _shown(options.model)}
    report("objectives", figures, settings, details=_details(results), save=options.save)


def _options() -> Namespace:
    arguments = parser(__doc__, quick="two objectives or those named, one seed, two small steps, a small evaluation")
    arguments.add_argument("names", nargs="*", metavar="NAME", type=known_objective, help="objectives (default: all)")
    arguments.add_argument("--save", action="store_true", help="write benchmarks/results/objectives.json")
    arguments.add_argument("--seeds", type=int, default=3, help="runs of each objective (%(default)s)")
    arguments.add_argument("--steps", type=int, default=20, help="steps of each run (%(default)s)")
    arguments.add_argument("--model", type=Path, default=BASE, help="where every run starts (default: assets/tiny)")
    arguments.add_argument("--teacher", type=Path, help="the reference of `distill`, which is left out without one")
    arguments.add_argument("--folder", type=Path, help="where runs are kept, to continue later (default: nowhere)")
    return arguments.parse_args()


def flags_of(name: str, seed: int, steps: int, quick: bool) -> list[str]:
    """Flags of one run of an objective, beyond model and directory; without a recipe of its own, that of DAPO."""
    own = CONFIGS / f"{name}.toml"
    recipe = own if own.exists() else CONFIGS / "dapo.toml"
    config = f"--config={recipe.relative_to(ROOT)}"
    return [config, f"--learner.loss.name={name}", f"--seed={seed}", f"--steps={steps}", *(QUICK_RUN if quick else [])]


def _train(name: str, seed: int, steps: int, options: Namespace, folder: Path) -> Trained:
    run_dir = folder / "run"
    if not (run_dir / "summary.json").exists() or newest_step(run_dir) != steps:
        shutil.rmtree(folder, ignore_errors=True)
        flags = flags_of(name, seed, steps, options.quick)
        flags += [f"--learner.loss.reference={options.teacher}"] if name == "distill" else []
        _call([*flags, f"--model.path={options.model}", f"--run-dir={run_dir}"])
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    records = [record for record in map(json.loads, lines) if record["kind"] == "step" and "gradient_norm" in record]
    return Trained(
        score=_score(newest_model(run_dir), folder / "eval", options.quick),
        minutes=json.loads((run_dir / "summary.json").read_text())["seconds"] / 60,
        clipped_share=fmean(r["clipped_low_share"] + r["clipped_high_share"] for r in records),
        entropy=records[-1]["entropy_mean"],
        gradient_norm=sorted(r["gradient_norm"] for r in records)[len(records) // 2],
    )


def _score(model: Path, run_dir: Path, quick: bool) -> Estimate:
    """Pass@1 of a model on held-out tasks of the first difficulty."""
    if not (run_dir / "evaluation.json").exists():
        flags = ["--config=configs/micro/eval.toml", f"--model.path={model}", f"--run-dir={run_dir}"]
        _call([*flags, *(QUICK_SCORE if quick else [])])
    written = json.loads((run_dir / "evaluation.json").read_text())["pass_at_1"]
    return Estimate(mean=written["mean"], se=written["se"])


def _call(flags: list[str]) -> None:
    command = [sys.executable, "launch.py", *flags, "--network.dashboard-port=0"]
    done = subprocess.run(command, cwd=ROOT, stdout=sys.stderr, timeout=_DEADLINE_S)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed with status {done.returncode}")


def _spread(scores: list[float]) -> float:
    """Standard error over seeds; 0 of a single one."""
    mean = fmean(scores)
    return math.sqrt(sum((s - mean) ** 2 for s in scores) / max(len(scores) - 1, 1) / len(scores))


def _summarize(results: dict[str, list[Trained]]) -> dict[str, float | None]:
    figures: dict[str, float | None] = {}
    for name, seeds in results.items():
        scores = [each.score.mean for each in seeds]
        figures[f"{name}_pass1"] = fmean(scores)
        figures[f"{name}_pass1_se"] = max(_spread(scores), fmean(each.score.se for each in seeds) / len(seeds) ** 0.5)
        figures[f"{name}_pass1_min"] = min(scores)
        figures[f"{name}_wall_min"] = fmean(each.minutes for each in seeds)
    return figures


def _details(results: dict[str, list[Trained]]) -> dict[str, object]:
    return {
        name: [
            {
                "pass1": [round(each.score.mean, 4), round(each.score.se, 4)],
                "clipped_share": round(each.clipped_share, 4),
                "entropy": round(each.entropy, 3),
                "gradient_norm": float(f"{each.gradient_norm:.3g}"),
            }
            for each in seeds
        ]
        for name, seeds in results.items()
    }


def _print_table(before: Estimate, results: dict[str, list[Trained]]) -> None:
    """For people; the last line is for programs."""
    print(
        "| objective | pass@1 before | after (mean, min) | beyond the clip | last entropy | gradient norm | minutes |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, seeds in results.items():
        scores = [each.score.mean for each in seeds]
        clipped, entropy, norm, minutes = (
            fmean(getattr(each, of) for each in seeds)
            for of in ("clipped_share", "entropy", "gradient_norm", "minutes")
        )
        print(
            f"| `{name}` | {before.mean:.1%} | {fmean(scores):.1%}, {min(scores):.1%} | {clipped:.1%} | "
            f"{entropy:.2f} | {norm:.3g} | {minutes:.1f} |"
        )


def _shown(model: Path) -> str:
    return str(model.relative_to(ROOT)) if model.is_relative_to(ROOT) else model.name


if __name__ == "__main__":
    main()
