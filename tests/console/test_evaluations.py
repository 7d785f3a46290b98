"""Evaluations: those beside a training run, and one that is a run of its own; how tasks stand; rates along the loop."""

from __future__ import annotations

import json
import random
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from benchmarks.console.made_run import made_episode, make_run
from console.report.report import write_report
from console.run_data import queries
from console.run_data.evaluations import read_evaluations
from console.run_data.queries import TRAINING, Filter
from console.run_data.rates import NO_RATES, rates
from console.run_data.run import Run
from console.run_data.task_states import read_tasks
from console.web.server import application

FIGURES: dict[str, Any] = {
    "num_tasks": 4,
    "num_tasks_asked": 5,
    "num_runs": 2,
    "num_attempts": 8,
    "num_attempts_asked": 10,
    "pass_at_1": {"mean": 0.25, "se": 0.1},
    "pass_at_1_of_all": 0.2,
    "interval": [0.1, 0.4],
    "pass_at_k": {"1": 0.25, "2": None},
    "by_repository": {"r<b>/x": {"mean": 0.25, "se": 0.1}},
    "by_difficulty": {"0": {"mean": 0.25, "se": 0.1}},
    "end_reasons": {"submitted": 8},
    "not_scored": {"no image": 2},
    "tasks_not_scored": ["t9"],
    "turns": 4.5,
    "tokens": 900.0,
}


def evaluate(folder: Path, version: int | None, num: int) -> None:
    """An evaluation of `num` episodes, which are called like the run's own."""
    (folder / "trajectories").mkdir(parents=True)
    rng = random.Random(num)
    lines = [made_episode(n, version or 0, 0.5, rng) | {"task_id": f"held-out-{n % 4}"} for n in range(num)]
    (folder / "trajectories" / "sandbox-actor-0.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    said = {} if version is None else {"version": version, "oldest_version": version, "newest_version": version + 1}
    (folder / "evaluation.json").write_text(json.dumps(FIGURES | said))


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    run = make_run(tmp_path / "trained", 16, num_steps=12)
    for version in (3, 12):
        evaluate(run / "evaluations" / f"version-{version}", version, 8)
    evaluate(run / "evaluations" / "step-<b>", None, 4)
    (run / "evaluations" / "version-12" / "evaluation.json").unlink()  # under way
    first = json.loads((run / "trajectories" / "sandbox-actor-0.jsonl").read_text().splitlines()[0])
    known = {first["task_id"]: {"runs": 9, "resolved": 3, "chance": 0.125, "trained": 8}}
    known |= {"owner2__project2-2": {"runs": 0, "resolved": 0, "chance": 0.0, "trouble": "no image <script>"}}
    (run / "tasks.json").write_text(json.dumps(known))
    return run


@pytest.fixture
async def client(trained: Path) -> AsyncIterator[TestClient[Any, Any]]:
    run = Run.open(trained)
    run.index.update()
    async with TestClient(TestServer(application(run, None))) as client:
        yield client


async def page(client: TestClient[Any, Any], path: str) -> str:
    answer = await client.get(path)
    assert answer.status == 200, await answer.text()
    return re.sub(r"\s+", " ", await answer.text())


def test_evaluations_are_found_in_order_and_what_is_none_is_not(trained: Path) -> None:
    (trained / "evaluations" / "empty").mkdir()
    found = read_evaluations(trained)
    assert [(each.name, each.figures is not None) for each in found] == [
        ("version-3", True),
        ("version-12", False),
        ("step-<b>", True),
    ]
    assert read_evaluations(trained / "evaluations" / "version-3")[0].name == ""


async def test_their_episodes_are_told_from_the_runs(client: TestClient[Any, Any], trained: Path) -> None:
    run = Run.open(trained)
    with run.index.connect() as db:
        counts = {
            n: queries.episodes(db, Filter(evaluation=n)).num_all for n in ("", TRAINING, "version-3", "step-<b>")
        }
        assert counts == {"": 36, TRAINING: 16, "version-3": 8, "step-<b>": 4}
        of_run = queries.episode_row(db, "g0/0")
        assert of_run is not None and of_run["evaluation"] == ""
        assert len(queries.members(db, "g0", "")) == len(queries.members(db, "g0", "version-3")) == 8
        (held_out,) = queries.episodes(db, Filter(evaluation="version-3", task="held-out-0", sort="task")).rows[:1]
    shown = await page(client, f"/episode?id={held_out['episode']}&row={held_out['row']}")
    assert "held-out-0" in shown and "evaluation=version-3" in shown
    assert held_out["episode"] in await page(client, f"/raw?id={held_out['episode']}&row={held_out['row']}")
    group = await page(client, "/group?id=g0&evaluation=version-3")
    assert "8 members recorded" in group and "advantage" not in group
    assert "advantage" in await page(client, "/group?id=g0")
    assert "all rewards are equal" not in group.lower()


async def test_the_page_of_evaluations_and_of_tasks(client: TestClient[Any, Any]) -> None:
    shown = await page(client, "/evaluations")
    assert "25.0 %" in shown and "20.0 %" in shown and "8 of 10" in shown and "3 to 4" in shown
    assert "not finished" in shown and "2 (no image)" in shown and "<b>/x" not in shown
    tasks = await page(client, "/tasks?evaluation=training")
    assert "12 %" in tasks and "33 %" in tasks  # the curriculum's chance; solved of all episodes
    assert "1 task with failures" in tasks and "no image &lt;script&gt;" in tasks
    held_out = await page(client, "/tasks?evaluation=step-%3Cb%3E")
    assert "4 with recorded episodes" in held_out and "held out" in held_out


async def test_an_evaluation_is_a_run_of_its_own(tmp_path: Path) -> None:
    run_dir = tmp_path / "eval"
    evaluate(run_dir, None, 8)
    (run_dir / "settings.json").write_text(
        json.dumps({"phase": "eval", "model": {"path": "/m/hf"}, "eval": {"runs": 2}})
    )
    (run_dir / "summary.json").write_text(json.dumps({"episodes": 8, "seconds": 30.0, "steps": 0}))
    run = Run.open(run_dir)
    run.index.update()
    async with TestClient(TestServer(application(run, None))) as client:
        overview = await page(client, "/")
        assert "The evaluation is over: 8 episodes in 30 s." in overview and "25.0 ± 10.0 %" in overview
        assert 'href="/steps"' not in overview
        assert "/m/hf" in await page(client, "/evaluations")
        assert "advantage" not in await page(client, "/group?id=g0")
        for path in ("/episodes", "/tasks", "/steps", "/fleet", "/settings", "/compare", "/task?id=held-out-1"):
            await page(client, path)
    report = write_report(run, tmp_path / "report.html").read_text()
    assert "25.0 ± 10.0 %" in report and 'href="/' not in report


def test_rates_are_those_of_the_last_minute_or_of_the_whole_run() -> None:
    samples = [
        {
            "time": 100.0 + t,
            "replay.leased": 2.0 * t,
            "replay.trained_version": t / 60,
            "replay.accepted": 5.0 * (t > 200),
        }
        for t in range(0, 301, 10)
    ]
    live, over = (rates(samples, samples[-1], is_live=is_live) for is_live in (True, False))
    assert (live.leases, live.versions, live.tokens) == (2.0, pytest.approx(1 / 60), None)
    assert (over.leases, over.episodes) == (2.0, pytest.approx(5 / 300))
    assert rates([], {}, is_live=True) == rates(samples[:1], samples[0], is_live=False) == NO_RATES
    restarted = [{"time": 0.0, "replay.leased": 90.0}, {"time": 10.0, "replay.leased": 5.0}]
    assert rates(restarted, restarted[1], is_live=False).leases == 0.0


def test_task_states_that_are_none_say_nothing(tmp_path: Path) -> None:
    for text in ("", "[]", '{"t": 7}', '{"t": {"runs": "many"}}'):
        (tmp_path / "tasks.json").write_text(text)
        assert read_tasks(tmp_path) == {}
