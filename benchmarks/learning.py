"""Does it learn? Base -> RFT -> RL stage 1 -> RL stage 2 through the whole system, scored on tasks never seen.

    python -m benchmarks.learning [--quick] [--save] [--seeds 3] [--check-seeds 1] [--folder DIR] [--plot FILE.png]

Every stage of configs/micro.toml is launched as a user would, then its model is scored by `--phase eval` on names never
seen in training. Beside that, the first seeds run stage 1 again from the same model

- with `--max-staleness 0`, the synchronous way,
- with rewards dealt out at random within their groups, which must teach nothing,
- for a few steps of learning rate 0 that resume stage 1's checkpoint over generators that loaded the base model: what
  they solve is the score of pushed weights, and the weights must come out as they went in.

What a folder already holds is not run again.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

from msgspec import Struct
from safetensors.numpy import load_file

from benchmarks.report import parser, report
from cluster.evaluation.scores import Estimate
from cluster.run_files import newest_step
from cluster.stages import newest_model

ROOT = Path(__file__).parent.parent
BASE = ROOT / "assets" / "tiny"
_STAGES = ("rft", "rl1", "rl2")
_DEADLINE_S = 2400
_PUSHED_STEPS = 8
SYNC = ["--max-staleness=0"]
SHUFFLED = ["--learner.loss.shuffle-rewards", "--steps=15"]
PUSHED = [  # held-out tasks, all of them alike
    "--learner.lr=0",
    "--tasks.split=heldout",
    "--tasks.count=128",
    "--replay.keep-no-signal",
    "--no-replay.curriculum",
]
_POINT_STEPS = 3
_LABELS = {"base": "base", "rft": "RFT", "rl1": "RL 1", "rl2": "RL 2"}


class Run(Struct, frozen=True, kw_only=True):
    """What one launch left."""

    model: Path
    step: int  # that the model is of
    seconds: float
    episodes: float
    rewards: list[float]  # mean of every step's batch
    curve: list[tuple[int, float]]  # step, % solved of the episodes that finished since the point before


class Result(Struct, frozen=True, kw_only=True):
    """One seed: scores by model, launches by name."""

    scores: dict[str, Estimate]
    runs: dict[str, Run]


class Checks(Struct, frozen=True, kw_only=True):
    """Stage 1 of one seed, run again in ways that must not differ, or must not learn."""

    sync: Run
    sync_score: Estimate
    shuffled: Run
    shuffled_score: Estimate
    pushed_score: Estimate
    changed_by_lr_0: int  # tensors


def main() -> None:
    arguments = parser(__doc__, quick="one seed, two small steps a stage, no checks: about six minutes")
    arguments.add_argument("--save", action="store_true", help="write benchmarks/results/learning.json")
    arguments.add_argument("--seeds", type=int, default=3, help="seeds of the whole recipe (%(default)s)")
    arguments.add_argument("--folder", type=Path, help="where runs are kept, to continue later (default: nowhere)")
    arguments.add_argument("--plot", metavar="FILE.png", help="draw the scores by stage")
    arguments.add_argument("--check-seeds", type=int, default=1, help="seeds that run the checks (%(default)s)")
    options = arguments.parse_args()
    num_seeds = 1 if options.quick else options.seeds
    with tempfile.TemporaryDirectory(prefix="longhaul-bench-") as directory:
        folders = [(options.folder or Path(directory)) / f"seed-{seed}" for seed in range(num_seeds)]
        results = [_learn(folder, seed, options.quick) for seed, folder in enumerate(folders)]
        num_checked = 0 if options.quick else options.check_seeds
        checked = enumerate(zip(folders[:num_checked], results, strict=False))
        checks = [_check(folder, result, seed) for seed, (folder, result) in checked]
        figures = _summarize(results) | _summarize_checks(results, checks)
    if options.plot:
        _plot(results, checks, options.plot)
    settings = {"seeds": num_seeds, "check_seeds": len(checks), "quick": options.quick, "config": "configs/micro.toml"}
    report("learning", figures, settings, details=_details(results, checks), save=options.save)


def _flags(seed: int, quick: bool) -> list[str]:
    return [f"--seed={seed}", *(["--steps=2", "--num-actors=64", "--replay.batch=16"] if quick else [])]


def _learn(folder: Path, seed: int, quick: bool) -> Result:
    """The stages of one seed."""
    runs: dict[str, Run] = {}
    scores = {"base": score(BASE, folder / "eval-base", quick)}
    model = BASE
    for stage in _STAGES:
        runs[stage] = _launch(folder / stage, stage, model, _flags(seed, quick))
        model = runs[stage].model
        scores[stage] = score(model, folder / f"eval-{stage}", quick)
    return Result(scores=scores, runs=runs)


def _check(folder: Path, result: Result, seed: int) -> Checks:
    """Stage 1 of one seed again: synchronous, with shuffled rewards, and with pushed weights that stand still."""
    start, flags = result.runs["rft"].model, _flags(seed, quick=False)
    sync = _launch(folder / "sync_rl1", "rl1", start, [*flags, *SYNC])
    shuffled = _launch(folder / "shuffled", "rl1", start, [*flags, *SHUFFLED])
    pushed = _run_pushed(folder / "pushed", result.runs["rl1"], flags)
    return Checks(
        sync=sync,
        sync_score=score(sync.model, folder / "eval-sync_rl1", quick=False),
        shuffled=shuffled,
        shuffled_score=score(shuffled.model, folder / "eval-shuffled", quick=False),
        pushed_score=Estimate(mean=fmean(pushed.rewards), se=_standard_error(pushed.rewards)),
        changed_by_lr_0=_num_changed(result.runs["rl1"].model, pushed.model),
    )


def _run_pushed(run_dir: Path, trained: Run, flags: list[str]) -> Run:
    """Steps that change nothing: what is solved is the score of weights that came over the weight channel."""
    more = [f"--resume={trained.model.parent}", f"--steps={trained.step + _PUSHED_STEPS}"]
    return _launch(run_dir, "rl1", BASE, [*flags, *PUSHED, *more])


def _launch(run_dir: Path, stage: str, model: Path, flags: list[str]) -> Run:
    """One training run; raises SystemExit naming it when it fails. One that was interrupted is run anew."""
    if not is_whole(run_dir):
        shutil.rmtree(run_dir, ignore_errors=True)
        _call([f"--config=configs/micro/{stage}.toml", f"--model.path={model}", *flags, f"--run-dir={run_dir}"])
    summary = json.loads((run_dir / "summary.json").read_text())
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return Run(
        model=newest_model(run_dir),
        step=newest_step(run_dir),
        seconds=summary["seconds"],
        episodes=summary["episodes"],
        rewards=[record["reward_mean"] for record in records if record["kind"] == "step"],
        curve=_curve([record for record in records if record["kind"] == "system"]),
    )


def is_whole(run_dir: Path) -> bool:
    """Whether a run took all the steps that it was to take."""
    if not (run_dir / "summary.json").exists():
        return False
    return newest_step(run_dir) == json.loads((run_dir / "settings.json").read_text())["steps"]


def _curve(samples: list[dict[str, float]]) -> list[tuple[int, float]]:
    """Pass rates of training episodes, from running totals; a point every `_POINT_STEPS`."""
    curve: list[tuple[int, float]] = []
    finished = solved = 0.0
    for sample in samples:
        now = sample.get("replay.finished.micro", 0.0)
        if now > finished and sample["step"] >= _POINT_STEPS * (len(curve) + 1):
            solved_now = now * sample["replay.pass_rate"]
            curve.append((int(sample["step"]), 100 * (solved_now - solved) / (now - finished)))
            finished, solved = now, solved_now
    return curve


def score(model: Path, run_dir: Path, quick: bool) -> Estimate:
    """Pass@1 of a model on held-out tasks of the first difficulty."""
    if not (run_dir / "evaluation.json").exists():
        flags = ["--config=configs/micro/eval.toml", f"--model.path={model}", f"--run-dir={run_dir}"]
        _call([*flags, *(["--tasks.count=16", "--eval.runs=2", "--num-actors=32"] if quick else [])])
    written = json.loads((run_dir / "evaluation.json").read_text())["pass_at_1"]
    return Estimate(mean=written["mean"], se=written["se"])


def _call(flags: list[str]) -> None:
    command = [sys.executable, "launch.py", *flags, "--network.dashboard-port=0"]
    done = subprocess.run(command, cwd=ROOT, stdout=sys.stderr, timeout=_DEADLINE_S)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed with status {done.returncode}")


def _num_changed(before: Path, after: Path) -> int:
    """Tensors of two models that differ in any bit."""
    old, new = (load_file(model / "model.safetensors") for model in (before, after))
    return sum(old[name].tobytes() != new[name].tobytes() for name in old)


def _standard_error(values: list[float]) -> float:
    mean = fmean(values)
    return (sum((value - mean) ** 2 for value in values) / max(len(values) - 1, 1) / len(values)) ** 0.5


def _summarize(results: list[Result]) -> dict[str, float | None]:
    def mean(of: Callable[[Result], float]) -> float:
        return fmean(map(of, results))

    figures: dict[str, float | None] = {}
    for stage in _LABELS:
        scores = [each.scores[stage] for each in results]
        figures[f"{stage}_pass1"] = fmean(score.mean for score in scores)
        figures[f"{stage}_pass1_se"] = sum(score.se**2 for score in scores) ** 0.5 / len(scores)
        figures[f"{stage}_pass1_min"] = min(score.mean for score in scores)
    figures["rft_over_base_min"] = min(_over_base(each, "rft") for each in results)
    figures["rl1_over_base_min"] = min(_over_base(each, "rl1") for each in results)
    figures["wall_min"] = mean(lambda each: sum(each.runs[stage].seconds for stage in _STAGES)) / 60
    figures["episodes"] = mean(lambda each: sum(each.runs[stage].episodes for stage in _STAGES))
    return figures


def _summarize_checks(results: list[Result], checks: list[Checks]) -> dict[str, float | None]:
    """Of the seeds that were checked; the asynchronous figures beside the synchronous ones are of the same seeds."""
    pairs = list(zip(results, checks, strict=False))
    if not pairs:
        return {}
    return {
        "sync_rl1_pass1": fmean(check.sync_score.mean for check in checks),
        "async_rl1_pass1": fmean(result.scores["rl1"].mean for result, _ in pairs),
        "sync_rl1_wall_min": fmean(check.sync.seconds for check in checks) / 60,
        "async_rl1_wall_min": fmean(result.runs["rl1"].seconds for result, _ in pairs) / 60,
        "shuffled_reward_gain": fmean(c.shuffled_score.mean - r.scores["rft"].mean for r, c in pairs),
        "pushed_minus_saved_pass1": fmean(c.pushed_score.mean - r.scores["rl1"].mean for r, c in pairs),
        "tensors_changed_by_lr_0": max(check.changed_by_lr_0 for check in checks),
    }


def _over_base(result: Result, stage: str) -> float:
    return result.scores[stage].mean / (result.scores["base"].mean or 1.0)


def _details(results: list[Result], checks: list[Checks]) -> dict[str, object]:
    """Every score and launch, by seed."""
    details: dict[str, object] = {}
    for seed, result in enumerate(results):
        scores, runs = dict(result.scores), dict(result.runs)
        for check in checks[seed : seed + 1]:
            scores |= {"sync_rl1": check.sync_score, "shuffled": check.shuffled_score, "pushed": check.pushed_score}
            runs |= {"sync_rl1": check.sync, "shuffled": check.shuffled}
        details[f"seed_{seed}"] = {
            "scores": {name: [round(score.mean, 4), round(score.se, 4)] for name, score in scores.items()},
            "minutes": {name: round(run.seconds / 60, 1) for name, run in runs.items()},
            "episodes": {name: run.episodes for name, run in runs.items()},
        }
    return details


def _plot(results: list[Result], checks: list[Checks], path: str) -> None:
    """Pass@1 by stage, and the pass rate of stage 1 while it trains; a colour a seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for seed, result in enumerate(results):
        scores = [result.scores[stage] for stage in _LABELS]
        left.errorbar(
            range(len(scores)),
            [100 * score.mean for score in scores],
            [100 * score.se for score in scores],
            marker="o",
            capsize=3,
            label=f"seed {seed}",
        )
        right.plot(*zip(*result.runs["rl1"].curve, strict=True), color=f"C{seed}")
    for seed, check in enumerate(checks):
        right.plot(*zip(*check.shuffled.curve, strict=True), color=f"C{seed}", linestyle=":")
    left.set_xticks(range(len(_LABELS)), list(_LABELS.values()))
    left.set(ylabel="held-out pass@1, %", ylim=(0, 100))
    right.set(
        xlabel="step of RL 1 (dotted: rewards shuffled)", ylabel="episodes solved while training, %", ylim=(0, 100)
    )
    left.legend()
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
