"""Are public tasks read, run and judged right, and does an outage leave a mark on any reward?

    python -m benchmarks.data [--quick] [--tasks FILE] [--save]

Records of every public dataset (made up, in the datasets' own forms) are read; cases on which a reader goes wrong are
held against what is right; every log parser of the `swebench` package is asked beside ours on the same logs; random
agent behaviours are taken as a change; and while 90% of the sandboxes break, solutions that are right are judged, and
a run goes on whose learner must see no reward of 0. Of 200 tasks every twentieth is broken on purpose, and `validate`
is to name just those. What `--eval.every 10` takes from training is measured on the real replay buffer in a simulated
world.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
from pathlib import Path
from typing import cast

from benchmarks.data.cases import CASES
from benchmarks.data.disagreements import disagreements
from benchmarks.data.logs import LOGS
from benchmarks.data.outage import zeros_under_outage
from benchmarks.data.outage_run import run_with_outage
from benchmarks.data.overhead import overhead
from benchmarks.data.records import RECORDS, SCHEMAS
from benchmarks.data.validation import validation
from benchmarks.report import parser, report
from benchmarks.sandbox.lost_changes import lost_changes
from protocol.config import SandboxSettings, TaskSettings
from protocol.errors import TaskError
from sandbox.backends import open_backend
from sandbox.base import Backend
from sandbox.datasets.formats import converter, recognise
from sandbox.datasets.loading import load_tasks
from sandbox.parsers.reading import LogSource
from sandbox.tasks.task import check_task

_SOURCE = LogSource(instance_id="corner__shop-12", version="3.1")


def main() -> None:
    """Measure and report."""
    flags = parser(__doc__)
    flags.add_argument("--tasks", help="sound tasks to validate, of `longhaul tasks build` (default: micro)")
    flags.add_argument("--save", action="store_true", help="write benchmarks/results/data.json")
    options = flags.parse_args()
    num_behaviours, num_gradings, steps = (20, 40, 20) if options.quick else (300, 400, 40)
    missing: dict[str, str] = {}
    right = {name: recognise(record) == SCHEMAS[name] for name, record in RECORDS.items()}
    cases = [case for group in CASES.values() for case in group]
    wrong = {case.name: case.wrong() for case in cases if case.wrong()}
    differing: int | None = None
    try:
        differing = sum(len(disagreements(log, _SOURCE)) for log in LOGS.values())
    except ImportError as error:
        missing["parser_disagreements"] = f"the swebench package is not installed: {error}"
    outage = asyncio.run(_outage(num_gradings, outage_s=5.0 if options.quick else 30.0))
    validated = asyncio.run(_validation(options.tasks, 20 if options.quick else 200))
    report(
        "data",
        {
            "records_read": sum(map(_is_read, RECORDS)),
            "datasets": sum(right.values()),
            "cases": len(cases),
            "cases_right": len(cases) - len(wrong),
            "parser_disagreements": differing,
            "lost_changes": asyncio.run(lost_changes(num_behaviours)),
            "fake_zeros": outage["zeros"] + outage["run_zeros"],
            "run_failed": outage["run_failed"],
            "run_trained": outage["run_trained"],
            "tasks_validated": validated["checked"],
            "broken_tasks": validated["broken"],
            "broken_tasks_found": validated["found"],
            "broken_tasks_named": validated["named"],
            "sound_tasks_refused": validated["refused"],
            "gradings_broken": outage["broken"],
            "gradings_right": outage["right"],
            "eval_overhead_share": overhead("actors", steps),
            "eval_overhead_share_learner_bound": overhead("learner", steps),
        },
        {
            "records": len(RECORDS),
            "logs": len(LOGS),
            "behaviours": num_behaviours,
            "gradings": num_gradings,
            "eval_steps": steps,
        },
        missing,
        details={"wrong": wrong},
        save=options.save,
    )


def _is_read(name: str) -> bool:
    try:
        check_task(converter("auto", RECORDS[name])(RECORDS[name]))
    except TaskError:
        return False
    return True


async def _outage(num: int, outage_s: float) -> dict[str, int]:
    backend = await open_backend(SandboxSettings(backend="auto"), "data-outage")
    try:
        with tempfile.TemporaryDirectory() as folder:
            judged = await zeros_under_outage(cast(Backend, backend), num, Path(folder), random.Random(0))
            run = await run_with_outage(cast(Backend, backend), Path(folder), outage_s, random.Random(0))
            return judged | {f"run_{name}": count for name, count in run.items()}
    finally:
        await backend.close()


async def _validation(source: str | None, num: int) -> dict[str, int]:
    backend = await open_backend(SandboxSettings(backend="auto"), "data-validation")
    try:
        with tempfile.TemporaryDirectory() as folder:
            tasks = load_tasks(TaskSettings(source=source or "micro", count=num))
            return await validation(cast(Backend, backend), Path(folder), tasks)
    finally:
        await backend.close()


if __name__ == "__main__":
    main()
