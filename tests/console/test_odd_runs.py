"""Directories as they are found: empty, torn, old, damaged, of somebody else. Every page answers."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from benchmarks.console.made_run import made_episode, make_run
from cluster.front_door.main import main
from console.run_data.index import FILE_NAME, Index
from console.run_data.run import Run
from console.web.server import application

PAGES = (
    "/",
    "/?x=time",
    "/episodes",
    "/episodes?q=FAILED&sort=tokens",
    "/episode?id=g0/0",
    "/tokens?id=g0/0",
    "/raw?id=g0/0",
    "/raw?id=g0/0&part=patch",
    "/group?id=g0",
    "/tasks",
    "/tasks?sort=solved&evaluation=training",
    "/task?id=t",
    "/steps",
    "/step?n=3",
    "/evaluations",
    "/fleet",
    "/log?name=learner-0",
    "/settings",
    "/compare",
)
NOISE = bytes(random.Random(0).randbytes(3000)) + b"\n"
DEEP = b"[" * 200_000 + b"\n"
HUGE = 10**40


def one_episode(**changes: Any) -> bytes:
    return json.dumps(made_episode(0, 3, 1.0, random.Random(5)) | {"task_id": "t"} | changes).encode() + b"\n"


def write(run: Path, name: str, *parts: bytes) -> None:
    path = run / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(parts))


def bare(run: Path) -> None:
    write(run, "settings.json", b"")


def nothing_measured(run: Path) -> None:
    write(run, "settings.json", b"{}")
    for name in ("metrics.jsonl", "trajectories/a.jsonl", "trajectories/a.tokens", "steps/learner.jsonl", "logs/a.log"):
        write(run, name)


def torn(run: Path) -> None:
    """The end of every file is missing."""
    make_run(run, 16, num_steps=12)
    for path in [path for path in run.rglob("*") if path.is_file()]:
        path.write_bytes(path.read_bytes()[:-40])


def noise(run: Path) -> None:
    make_run(run, 16, num_steps=12)
    for path in [path for path in run.rglob("*") if path.is_file()]:
        half = len(path.read_bytes()) // 2
        path.write_bytes(NOISE + DEEP + path.read_bytes()[:half] + NOISE + path.read_bytes()[half:])


def other_types(run: Path) -> None:
    """JSON that is something else than it should be."""
    settings = {"model": 7, "replay": [], "phase": {}, "steps": "many", "metrics": None, "tasks": {"sources": [{}]}}
    write(run, "settings.json", json.dumps(settings).encode())
    for name in ("summary.json", "audit.json", "fleet.json", "versions.json", "pass_rates.json"):
        write(run, name, json.dumps({"seconds": "long", "episodes": [], "processes": {"a": 1}, "at": {}}).encode())
    odd = [{"kind": "step", "time": "now", "step": "x"}, {"kind": "step", "time": 1.0, "step": {}}, [], None, 7]
    odd += [{"kind": "step", "time": 5.0, "step": 3, "loss_mean": [], "reward_mean": "good", "a<b>": True}]
    write(run, "metrics.jsonl", *(json.dumps(line).encode() + b"\n" for line in odd))
    write(run, "trajectories/a.jsonl", one_episode(num_tokens="12", messages=[{"role": 7}]), one_episode(messages={}))
    write(run, "steps/learner.jsonl", b'{"step": "x"}\n{"step": 3, "episodes": [{}], "worst": 7}\n')
    write(run, "evaluations/version-x/evaluation.json", b'{"pass_at_1": 7, "end_reasons": []}')
    write(run, "evaluations/file", b"")


def extreme(run: Path) -> None:
    """Numbers that no machine word holds, and texts that no page does."""
    make_run(run, 8, num_steps=12)
    lines = [{"kind": kind, "time": at, "step": n} for kind in ("step", "system") for at in (1e300, -5.0) for n in (3,)]
    lines += [{"kind": "step", "time": 2e9, "step": HUGE, "loss_mean": HUGE}, {"kind": "step", "time": 3e9, "step": -3}]
    lines += [{"kind": "step", "time": 3e9, "step": 1e300, "reward_mean": 1e308, "entropy_mean": -1e308}]
    text = b'{"kind": "system", "time": 1e999, "step": 0}\n{"kind": "step", "time": 1, "step": ' + b"9" * 6000 + b"}\n"
    write(run, "metrics.jsonl", *(json.dumps(line).encode() + b"\n" for line in lines), text)
    for field in ("attempt", "member", "num_turns", "num_tokens", "num_branches"):
        with (run / "trajectories" / "b.jsonl").open("ab") as file:
            file.write(one_episode(**{field: HUGE}) + one_episode(**{field: -HUGE}) + one_episode(**{field: 1e99}))
    messages: list[dict[str, Any]] = [{"role": "assistant", "content": "x", "tokens": t} for t in ([], [1], [9, 1])]
    messages += [{"role": "assistant", "content": "y", "tokens": [HUGE, -HUGE], "versions": [HUGE], "after": -HUGE}]
    messages += [{"role": "assistant", "content": None, "tokens": [1, 2], "generate_s": 1e300, "after": HUGE}]
    odd = [one_episode(messages=messages), one_episode(started_at=1e300, finished_at=-1e300, token_records=[-1, HUGE])]
    odd += [one_episode(task_id="x" * 1_000_000), one_episode(reward=1e308, mean_logprob=-1e308)]
    write(run, "trajectories/c.jsonl", *odd, b'{"episode_id": "nan", "messages": [], "reward": NaN}\n')
    write(run, "summary.json", json.dumps({"seconds": 1e300, "episodes": HUGE, "steps": -1}).encode())
    row = {"name": "learner-0", "state": "x", "doing": "", "detail": "", "host": "", "since": 1e300, "restarts": HUGE}
    write(run, "fleet.json", json.dumps({"at": 1e300, "processes": [row | {"memory_bytes": 1e300}]}).encode())
    worst = {"episode_id": "g0/0", "place": HUGE, "learner": 1e300, "sampler": -1e300, "token": HUGE}
    write(run, "steps/learner.jsonl", *(json.dumps({"step": n, "worst": [worst]}).encode() + b"\n" for n in (3, HUGE)))


def other_files(run: Path) -> None:
    """Links that lead nowhere, pipes that nobody writes, folders called like files."""
    make_run(run, 8, num_steps=12)
    for folder, ending in (("trajectories", "jsonl"), ("steps", "jsonl"), ("logs", "log")):
        (run / folder).mkdir(exist_ok=True)
        (run / folder / f"folder.{ending}").mkdir()
        (run / folder / f"nowhere.{ending}").symlink_to("nothing")
        (run / folder / f"loop.{ending}").symlink_to(f"loop.{ending}")
        os.mkfifo(run / folder / f"pipe.{ending}")
        (run / folder / os.fsdecode(b"odd-\xff<b>\n." + ending.encode())).write_bytes(one_episode(episode_id="odd"))
    (run / "evaluations").symlink_to("evaluations")
    for name in ("summary.json", "audit.json", "fleet.json", "versions.json"):
        (run / name).unlink()
        (run / name).mkdir()


def files_for_folders(run: Path) -> None:
    bare(run)
    for name in ("trajectories", "steps", "logs", "evaluations", "plots", "metrics.jsonl"):
        write(run, name, b"a file")


def old(run: Path) -> None:
    """As a first version wrote it: fewer fields, other names, settings that are gone."""
    write(run, "settings.json", b'{"steps": 5, "num_actors": 4, "weights": {"gone": true}, "phase": "rl"}')
    lines = [{"kind": "step", "time": float(n), "step": n, "loss": 0.1, "lengths_drift": 2.0} for n in range(1, 6)]
    write(run, "metrics.jsonl", *(json.dumps(line).encode() + b"\n" for line in lines))
    record = {
        "episode_id": "g0/0",
        "task_id": "t",
        "messages": [{"role": "assistant", "content": "hi", "tokens": [0, 1]}],
    }
    write(run, "trajectories/a.jsonl", json.dumps(record).encode() + b"\n")


def somebody_elses_index(run: Path) -> None:
    other = make_run(run.parent / "other", 24, num_steps=12)
    Index(other).update()
    write(run, "settings.json", b"{}")
    write(run, "trajectories/mine.jsonl", one_episode(episode_id="mine"))
    shutil.copy(other / FILE_NAME, run / FILE_NAME)


KINDS = (
    *(bare, nothing_measured, torn, noise, other_types, extreme, other_files, files_for_folders, old),
    somebody_elses_index,
)


def client_of(run: Path) -> tuple[TestClient[Any, Any], Run]:
    opened = Run.open(run)
    opened.index.update()
    return TestClient(TestServer(application(opened, None))), opened


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    run = tmp_path / "run"
    run.mkdir()
    return run


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
async def test_every_page_answers(kind: Callable[[Path], None], directory: Path) -> None:
    kind(directory)
    client, opened = client_of(directory)
    async with client:
        for page in PAGES:
            answer = await client.get(page)
            text = await answer.text()
            assert answer.status in (200, 404), (page, text[-600:])
            assert len(text) < 8_000_000, page
    assert opened.index.progress().is_current
    with opened.index.connect() as db:
        names = {row["episode"] for row in db.execute("SELECT episode FROM episodes")}
    if kind is somebody_elses_index:
        assert names == {"mine"}
    if kind is other_files:
        assert "odd" in names and len(names) == 9


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_commands_end_in_order(
    kind: Callable[[Path], None], directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind(directory)
    run = str(directory)
    for arguments in (["report", run], ["top", run, "--once"], ["compare", run, run], ["traces", run]):
        assert main(arguments) in (0, 2), arguments
        assert "Traceback" not in capsys.readouterr().err


async def test_a_run_that_is_deleted_while_it_is_served(directory: Path) -> None:
    make_run(directory, 16, num_steps=12)
    client, _ = client_of(directory)
    async with client:
        assert (await client.get("/episode?id=g0/0")).status == 200
        shutil.move(directory, gone := directory.with_name("gone"))  # at once: the index is being written meanwhile
        shutil.rmtree(gone)
        for page in PAGES:
            answer = await client.get(page)
            assert answer.status in (200, 404, 410), page
            assert "<h1" in await answer.text(), page
        make_run(directory, 8, num_steps=12)
        await asyncio.sleep(0)
        assert (await client.get("/")).status == 200
