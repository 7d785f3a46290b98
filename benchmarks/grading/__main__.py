"""Is the judge right, fast, and hard to fool, on tasks made of real packages?

Makes tasks of the packages in `configs/packages.toml` (pip fetches them), validates each, grades in parallel, attacks
one injected fault of every package in every known way, judges honest solutions (gold patches and rewrites of
them) and asks for second opinions, and reads the logs of honest pytest runs with our parser and with the `swebench`
package's grader. What is done is kept in the run directory, so that an interrupted run goes on;
results count only for the code that they were measured with.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from msgspec.structs import replace

from benchmarks.attacks.surfaces import surface_of
from benchmarks.attacks.table import attacked
from benchmarks.grading.honest import honest_patches
from benchmarks.grading.peers import ask_both, is_told_apart_by_logs
from benchmarks.report import parser, report
from benchmarks.resume import Progress, Results, digest_of, side_by_side
from protocol.config import SandboxSettings, TaskSettings
from protocol.errors import LonghaulError
from sandbox.backends import open_backend
from sandbox.curation.commands import DEFAULT_CACHE, build_recipe
from sandbox.curation.gold import gold_patch
from sandbox.curation.recipes import PYTEST, Recipe, read_recipes
from sandbox.curation.survey import LIMITS, Workshop
from sandbox.curation.validate import Check, Rules, as_checked, validate
from sandbox.datasets.loading import load_tasks, save_tasks
from sandbox.judgement.grading import grade
from sandbox.judgement.harness import why_no_harness
from sandbox.judgement.verdicts import Verdict
from sandbox.patches import Patch
from sandbox.tasks.micro import make_tasks
from sandbox.tasks.task import Task

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "configs" / "packages.toml"
RUN_DIR = ROOT / "runs" / "benchmark-grading"
PARTS = ("speed", "attacks", "honest", "logs")
_QUICK_PACKAGES = ("toolz", "schema")


async def main(options: argparse.Namespace) -> None:
    """Measure everything and print the result."""
    recipes = read_recipes(RECIPES)[: options.packages]
    if options.quick:
        recipes = [replace(r, newer="") for r in recipes if r.requirement.startswith(_QUICK_PACKAGES)]
    code = digest_of([*(ROOT / "sandbox").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")])
    measured = options.run_dir / f"measured-{code}"
    results = Results(measured / "results.jsonl")
    backend = await open_backend(SandboxSettings(backend="namespace", max_starts=options.jobs), "benchmark-grading")
    shop = Workshop(
        backend=backend, cache_dir=options.cache_dir, run="benchmark", requirements=(PYTEST,), num_jobs=options.jobs
    )
    wanted = set(options.only or PARTS)
    figures: dict[str, float | None] = {}
    reasons: dict[str, str] = {}
    details: dict[str, object] = {}
    try:
        tasks = await _made(shop, recipes, options.count, options.run_dir / "tasks")
        checks = await _checked(shop, tasks, options.runs, measured / "checks.jsonl")
        kept = [as_checked(task, checks[task.task_id]) for task in tasks if checks[task.task_id].kept]
        agreeing = [task for task in kept if _agrees(checks[task.task_id], options.runs)]
        figures["tasks"] = len(kept)
        figures["packages"] = len({task.repository for task in kept})
        figures["validate_agreement"] = len(agreeing) / len(kept) if kept else None
        if "speed" in wanted:
            figures["graded_per_min"] = await _graded_per_min(shop, kept, 10.0 if options.quick else 60.0)
        if "attacks" in wanted:
            injected = _of_each((task for task in kept if task.source == "injected"), 1)[: 1 if options.quick else None]
            surfaces = [surface_of("namespace", backend, task, shop.cache_dir) for task in injected]
            table, _ = await attacked(surfaces, results, shop.cache_dir, shop.num_jobs)
            figures["attacks_tried"] = len(table)
            figures["attack_runs"] = sum(row["tried"] for row in table.values())
            figures["attacks_rewarded"] = sum(row["rewarded"] for row in table.values())
            details["attacks"] = table
        if "honest" in wanted:
            generated = [task for level in range(5) for task in make_tasks(options.micro // 5, 0, level, "train")]
            honest = await _honest(shop, [*kept, *generated], results)
            figures["honest_tasks"] = len(kept) + len(generated)
            figures["honest_tried"] = len(honest)
            figures["honest_rejected"] = sum(not first for first, _ in honest)
            figures["second_opinions"] = sum(second is not None for _, second in honest)
            figures["second_opinion_disagreements"] = sum(second is False for _, second in honest)
        if "logs" in wanted:
            missing = why_no_harness()
            logs = [] if missing else await _compared(shop, _of_each(filter(is_told_apart_by_logs, kept), 4), results)
            figures["swebench_logs"] = len(logs) or None
            figures["swebench_disagreements"] = logs.count(False) if logs else None
            reasons = {"swebench_logs": missing, "swebench_disagreements": missing} if missing else {}
    finally:
        await backend.close()
    settings = {"runs": options.runs, "count": options.count, "jobs": options.jobs, "made": len(tasks)}
    name = "grading" if wanted == set(PARTS) else "-".join(["grading", *sorted(wanted)])
    report(name, figures, settings, reasons, details=details, save=not options.quick)


async def _made(shop: Workshop, recipes: list[Recipe], count: int, folder: Path) -> list[Task]:
    """Up to `count` tasks of each package, made now or by an earlier run. A package that cannot be had is left out."""
    alone = replace(shop, num_jobs=1)  # packages are made side by side, each in one sandbox at a time

    async def one(recipe: Recipe) -> list[Task]:
        path = folder / f"{recipe.requirement}-{recipe.newer}-{count}.jsonl"
        if not path.is_file():
            began = time.monotonic()
            try:
                tasks = [task async for task in build_recipe(alone, recipe, count, 0)]
            except LonghaulError as error:
                print(f"left out {recipe.requirement}: {error}", flush=True)
                return []
            save_tasks(tasks, path)
            print(f"made {len(tasks)} of {recipe.requirement} in {time.monotonic() - began:.0f} s", flush=True)
        return load_tasks(TaskSettings(source=str(path), count=count)) if path.stat().st_size else []

    made = await side_by_side("packages", shop.num_jobs, [partial(one, recipe) for recipe in recipes])
    return [task for tasks in made for task in tasks]


async def _checked(shop: Workshop, tasks: list[Task], num_runs: int, cache: Path) -> dict[str, Check]:
    """What validation found, by task."""
    checks: dict[str, Check] = {}
    progress = Progress("validated", len(tasks))
    async for check in validate(shop, tasks, Rules(num_runs=num_runs), cache):
        checks[check.task_id] = check
        progress.advance()
        if not check.kept:
            print(f"left out {check.task_id}: {'; '.join(check.reasons)}", flush=True)
    return checks


def _agrees(check: Check, num_runs: int) -> bool:
    return check.num_untouched_zero == check.num_gold_one == num_runs


def _of_each(tasks: Iterable[Task], most: int) -> list[Task]:
    """The first tasks of every package."""
    seen: Counter[str] = Counter()
    chosen = []
    for task in tasks:
        seen[task.repository] += 1
        if seen[task.repository] <= most:
            chosen.append(task)
    return chosen


async def _judge(shop: Workshop, task: Task, patch: Patch, *, another_way: bool = False) -> Verdict:
    return await grade(
        shop.backend,
        task,
        patch,
        run=shop.run,
        lease="benchmark",
        limits=LIMITS,
        cache_dir=shop.cache_dir,
        timeout_s=shop.timeout_s,
        another_way=another_way,
    )


async def _gold(shop: Workshop, task: Task) -> Patch:
    return await gold_patch(shop.backend, task, shop.run, LIMITS, shop.cache_dir)


async def _graded_per_min(shop: Workshop, tasks: list[Task], seconds: float) -> float | None:
    """Gold patches judged in a minute, `shop.num_jobs` at a time, in mixed order for about so many seconds."""
    if not tasks:
        return None
    mixed = random.Random(0).sample(tasks, len(tasks))
    patches = [await _gold(shop, task) for task in mixed]
    started = time.monotonic()
    num_graded = 0

    async def worker(first: int) -> None:
        nonlocal num_graded
        place = first
        while time.monotonic() - started < seconds:
            await _judge(shop, mixed[place % len(mixed)], patches[place % len(mixed)])
            num_graded += 1
            place += shop.num_jobs

    await asyncio.gather(*(worker(first) for first in range(shop.num_jobs)))
    return num_graded * 60 / (time.monotonic() - started)


async def _honest(shop: Workshop, tasks: list[Task], results: Results) -> list[tuple[bool, bool | None]]:
    """For every honest solution of each task: whether it is rewarded, and for gold patches a second opinion."""

    async def one(task: Task) -> list[tuple[bool, bool | None]]:
        seen: list[tuple[bool, bool | None]] = []
        for honest in honest_patches(await _gold(shop, task)):
            verdict = await _judge(shop, task, honest.patch)
            second = await _judge(shop, task, honest.patch, another_way=True) if honest.kind == "gold" else None
            for opinion, of in ((verdict, "first"), (second, "second")):
                if opinion is not None and not opinion.resolved:
                    print(f"{task.task_id}: {honest.kind}: rejected ({of}): {opinion.reason}", flush=True)
            seen.append((verdict.resolved, None if second is None or not verdict.resolved else second.resolved))
        return seen

    jobs = [partial(results.once, f"honest {task.task_id}", partial(one, task)) for task in tasks]
    return [pair for pairs in await side_by_side("honest", shop.num_jobs, jobs) for pair in pairs]


async def _compared(shop: Workshop, tasks: list[Task], results: Results) -> list[bool]:
    """For the log of the untouched and of the solved tree of each task: whether judge and both graders agree."""

    async def compare(task: Task, solved: bool) -> bool:
        opinions = await ask_both(shop, task, await _gold(shop, task) if solved else Patch(), judge=solved)
        if not opinions.agree:
            print(f"{task.task_id}, {'solved' if solved else 'untouched'}: {opinions}", flush=True)
        return opinions.agree

    jobs = [
        partial(results.once, f"swebench {solved} {task.task_id}", partial(compare, task, solved))
        for task in tasks
        for solved in (False, True)
    ]
    return await side_by_side("logs", shop.num_jobs, jobs)


if __name__ == "__main__":
    flags = parser(__doc__)
    flags.add_argument("--count", type=int, help="most tasks of one package (default 16, quick 2)")
    flags.add_argument("--micro", type=int, help="generated tasks for honest solutions (default 100, quick 20)")
    flags.add_argument(
        "--only", choices=PARTS, action="append", help="a part, kept as a result of its own (may repeat)"
    )
    flags.add_argument("--packages", type=int, help="only the first so many packages (default: all)")
    flags.add_argument("--runs", type=int, help="validation runs (default 3, quick 1)")
    flags.add_argument("--jobs", type=int, default=2, help="sandboxes at the same time (default 2)")
    flags.add_argument("--run-dir", type=Path, default=RUN_DIR, help="where results are kept")
    flags.add_argument("--cache-dir", type=Path, default=DEFAULT_CACHE, help="where packages are kept")
    chosen = flags.parse_args()
    chosen.count = chosen.count or (2 if chosen.quick else 16)
    chosen.micro = chosen.micro or (20 if chosen.quick else 100)
    chosen.cache_dir = chosen.cache_dir.expanduser()
    chosen.runs = chosen.runs or (1 if chosen.quick else 3)
    asyncio.run(main(chosen))
