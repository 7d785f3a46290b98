"""`python -m sandbox.curation build | validate`: make task files of released packages, and check any task file."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from msgspec.structs import replace
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from protocol.config import SandboxSettings, TaskSettings
from protocol.errors import ConfigError, LonghaulError
from protocol.section import amount, count, expanded, positive
from sandbox.backends import open_backend
from sandbox.curation.injected import inject_faults
from sandbox.curation.recipes import PYTEST, Recipe, check_recipe, read_recipes
from sandbox.curation.releases import release_pair
from sandbox.curation.survey import Workshop, open_package
from sandbox.curation.validate import PAPER, Rules, as_checked, validate
from sandbox.datasets.loading import all_of, load_tasks, save_tasks
from sandbox.tasks.sources import usable_cache
from sandbox.tasks.task import Task

DEFAULT_CACHE = TaskSettings().cache_dir
"""The cache of runs, so that what a build fetched is there for them."""


def build(arguments: Sequence[str], program: str) -> int:
    """`main(["build", ...])`, called by another name."""
    return main(["build", *arguments], program.removesuffix(" build"))


def check(arguments: Sequence[str], program: str) -> int:
    """`main(["validate", ...])`, called by another name."""
    return main(["validate", *arguments], program.removesuffix(" validate"))


def main(arguments: Sequence[str] | None = None, program: str = "python -m sandbox.curation") -> int:
    """Exit status: 0 if at least one task came out, 1 if none did, 2 for a mistake in the arguments."""
    options = make_parser(program).parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    try:
        options.out = expanded(options.out)
        _check_out(options)
        return asyncio.run(_build(options) if options.command == "build" else _validate(options))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (LonghaulError, OSError) as error:  # of a daemon, of a disk, say: what is known was written as it came
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _check_out(options: argparse.Namespace) -> None:
    """Raises `ConfigError` where the results cannot be written, or would take the place of what is read."""
    out: Path = options.out
    read = expanded(options.tasks) if options.command == "validate" else None
    if out.suffix == ".parquet":
        raise ConfigError(f"--out {out}: a task file is written as JSONL: name it {out.stem}.jsonl", kind="out")
    try:
        if read is not None and out.exists() and read.exists() and out.samefile(read):
            raise ConfigError(f"--out {out} is the task file itself, which would lose what is left out", kind="out")
        if out.is_dir() or not out.name:
            raise IsADirectoryError("it is a directory")
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            pass
        for there in (out, _checks_of(out)):
            if there.exists() and (there.is_dir() or not os.access(there, os.W_OK)):
                raise PermissionError(f"{there} is there and cannot be written")
    except OSError as error:
        raise ConfigError(f"--out {out} cannot be written: {error.strerror or error}", kind="out") from error


def _checks_of(out: Path) -> Path:
    return out.with_suffix(".checks.jsonl")


async def _build(options: argparse.Namespace) -> int:
    recipes = [check_recipe(Recipe(requirement=name)) for name in options.packages]
    recipes += read_recipes(options.recipes) if options.recipes else []
    if not recipes:
        raise ConfigError("name at least one package, or --recipes configs/packages.toml", kind="packages")
    tasks: list[Task] = []
    built = options.out.with_suffix(".built.jsonl")  # what an interruption leaves unchecked
    async with _workshop(options) as shop:
        with _progress() as progress:
            bar = progress.add_task("building", total=len(recipes) * options.count)
            for recipe in recipes:
                progress.update(bar, description=recipe.requirement)
                try:
                    async for task in build_recipe(shop, recipe, options.count, options.seed):
                        tasks.append(task)
                        save_tasks(tasks, built)
                        progress.advance(bar)
                except LonghaulError as error:
                    progress.console.print(f"left out {recipe.requirement}: {error}", markup=False)
        if not tasks:
            return 1
        try:
            status, num_unchecked = await _keep_valid(shop, tasks, Rules(num_runs=options.runs), options)
        except BaseException:
            print(f"every task that was built is in {built}: validate that file to go on", file=sys.stderr)
            raise
        if num_unchecked:
            print(f"every task that was built is in {built}: validate that file to go on", file=sys.stderr)
        else:
            built.unlink()
        return status


async def build_recipe(shop: Workshop, recipe: Recipe, count: int, seed: int) -> AsyncIterator[Task]:
    """Tasks of one package: its release pair, where the recipe names one, then injected faults, `count` in all."""
    count = count if recipe.most is None else min(count, recipe.most)
    shop = replace(shop, requirements=(PYTEST, *recipe.test_requirements))
    package = await open_package(shop, recipe.requirement)
    if recipe.newer:
        newer = await open_package(shop, f"{package.name}=={recipe.newer}")
        yield await release_pair(shop, package, newer)
        count -= 1
    async for task in inject_faults(shop, package, count, seed):
        yield task


async def _validate(options: argparse.Namespace) -> int:
    tasks = load_tasks(TaskSettings(source=options.tasks, split=options.split, count=all_of(options.tasks)))
    async with _workshop(options) as shop:
        return (await _keep_valid(shop, tasks, rules_of(options), options))[0]


def rules_of(options: argparse.Namespace) -> Rules:
    """The filters that are asked for, in place of the paper's or of none."""
    asked = {
        "max_files": options.max_files,
        "max_lines": options.max_lines,
        "drop_llm_score_at": options.llm_score,
        "failure_kinds": tuple(options.failure_kind) if options.failure_kind else None,
        "keep_flaky": False if options.drop_flaky else None,
        "num_runs": options.runs,
    }
    rules = PAPER if options.paper else Rules()
    return replace(rules, **{name: value for name, value in asked.items() if value is not None})


async def _keep_valid(shop: Workshop, tasks: list[Task], rules: Rules, options: argparse.Namespace) -> tuple[int, int]:
    """Validate, write the tasks that are kept to `options.out`, and say why the others are not; the exit status, and
    how many tasks could not be checked."""
    by_id = {task.task_id: task for task in tasks}
    kept: list[Task] = []
    unchecked: dict[str, str] = {}
    num_checked = 0
    try:
        with _progress() as progress:
            bar = progress.add_task("validating", total=len(tasks))
            async for check in validate(shop, tasks, rules, _checks_of(options.out)):
                progress.advance(bar)
                num_checked += not check.unchecked
                if check.kept:
                    kept.append(as_checked(by_id[check.task_id], check))
                elif check.unchecked:
                    unchecked[check.task_id] = check.unchecked
                else:
                    progress.console.print(f"left out {check.task_id}: {'; '.join(check.reasons)}", markup=False)
    finally:  # whatever ended it: what is known is kept
        order = {task_id: place for place, task_id in enumerate(by_id)}
        save_tasks(sorted(kept, key=lambda task: order[task.task_id]), options.out)
        print(f"{len(kept)} of {len(tasks)} tasks kept in {options.out}")
        for task_id, why in unchecked.items():
            print(f"could not check {task_id}: {why}", file=sys.stderr)
        if num_checked < len(tasks):
            print(f"{len(tasks) - num_checked} tasks are not checked; call it again to go on", file=sys.stderr)
    return (0 if kept else 1), len(tasks) - num_checked


@asynccontextmanager
async def _workshop(options: argparse.Namespace) -> AsyncIterator[Workshop]:
    cache_dir = usable_cache(options.cache_dir, "--cache-dir")
    run = f"tasks-{os.getpid()}"
    backend = await open_backend(SandboxSettings(backend=options.backend, max_starts=options.jobs), run)
    try:
        yield Workshop(
            backend=backend,
            cache_dir=cache_dir,
            run=run,
            requirements=(PYTEST,),
            timeout_s=options.timeout,
            num_jobs=options.jobs,
        )
    finally:
        await backend.close()


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True))


def make_parser(program: str = "python -m sandbox.curation") -> argparse.ArgumentParser:
    """The arguments of both commands."""
    parser = argparse.ArgumentParser(prog=program, description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    build = commands.add_parser("build", help="make validated tasks of released packages (pip fetches them)")
    build.add_argument("packages", nargs="*", metavar="NAME==VERSION", help="pinned packages")
    build.add_argument("--recipes", type=Path, help="TOML list of packages, such as configs/packages.toml")
    build.add_argument("--count", type=count, default=20, help="most tasks of one package (default 20)")
    build.add_argument("--seed", type=int, default=0, help="seed of the faults")
    build.add_argument("--runs", type=count, default=3, help="runs of the untouched and of the solved tree (default 3)")

    check = commands.add_parser("validate", help="keep the tasks whose untouched tree scores 0 and gold patch 1")
    check.add_argument("tasks", help="task file (JSONL, Parquet) or Hugging Face dataset")
    check.add_argument("--split", default="train", help="split of a dataset")
    check.add_argument("--runs", type=count, help="runs of each (default 3; with --paper 50)")
    check.add_argument("--paper", action="store_true", help="all filters as in the paper")
    check.add_argument("--max-files", type=amount, help="most files that the gold patch may change")
    check.add_argument("--max-lines", type=amount, help="most lines that the gold patch may change")
    check.add_argument("--llm-score", type=float, help="drop tasks with an LLM score at or above this")
    check.add_argument(
        "--failure-kind",
        action="append",
        metavar="ERROR",
        help="drop tasks whose tests fail by it (ImportError); repeat",
    )
    check.add_argument("--drop-flaky", action="store_true", help="drop tasks with a test that changed between runs")

    for command in (build, check):
        command.add_argument("--out", type=Path, required=True, help="task file to write; results are kept beside it")
        command.add_argument("--backend", default="auto", choices=["auto", "docker", "namespace"])
        command.add_argument("--cache-dir", type=Path, default=DEFAULT_CACHE, help=f"default {DEFAULT_CACHE}")
        command.add_argument("--jobs", type=count, default=2, help="sandboxes at the same time (default 2)")
        command.add_argument("--timeout", type=positive, default=120.0, help="seconds that one test run may take")
    return parser
