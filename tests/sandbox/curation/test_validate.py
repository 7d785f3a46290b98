"""Validation goes on where one task breaks the place, keeps what it has and names what it could not check."""

from __future__ import annotations

from pathlib import Path

import pytest

from protocol.errors import SandboxError
from sandbox.base import Sandbox, SandboxSpec
from sandbox.curation.commands import main
from sandbox.curation.survey import Workshop
from sandbox.curation.validate import NUM_ATTEMPTS, Rules, validate
from sandbox.datasets.loading import save_tasks
from sandbox.judgement.verdicts import Verdict
from sandbox.patches import Patch
from sandbox.tasks.micro import make_tasks
from sandbox.tasks.task import Task


class BreaksFor:
    """Gives no sandbox at all; for one task by an error that nobody foresaw."""

    name = "breaks"

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def create(self, spec: SandboxSpec) -> Sandbox:
        self.asked.append(spec.lease)
        if spec.lease.endswith(self.asked[0][-8:]):
            raise KeyError("surprise")
        raise SandboxError("no room", kind="start")


async def test_what_could_not_be_checked_is_named(tmp_path: Path) -> None:
    backend = BreaksFor()
    shop = Workshop(
        backend=backend,  # type: ignore[arg-type]
        cache_dir=tmp_path,
        run="test",
        requirements=(),
        timeout_s=5.0,
        num_jobs=1,
    )
    tasks = make_tasks(3, 0, 0, "train")
    cache = tmp_path / "checks.jsonl"
    checks = [check async for check in validate(shop, tasks, Rules(num_runs=1), cache)]
    assert {check.task_id for check in checks} == {task.task_id for task in tasks}
    assert not any(check.kept or check.reasons for check in checks)
    assert {check.unchecked.split(":")[0] for check in checks} == {"KeyError", "no room"}
    assert len(backend.asked) == NUM_ATTEMPTS * len(tasks)
    assert not cache.exists()  # so that the next call tries them again


@pytest.mark.parametrize("separator", ["\u2028", "\x1c", "\x85"])
def test_a_line_of_results_ends_where_it_ends(tmp_path: Path, separator: str) -> None:
    from sandbox.curation.validate import whole_lines

    line = f'{{"a": "x{separator}y"}}'.encode()
    (tmp_path / "a.jsonl").write_bytes(line + b"\n" + line + b"\nunfinished")
    assert whole_lines(tmp_path / "a.jsonl") == [line, line]


class Judges:
    """Gives every sandbox the same end: the tests take a minute."""

    def __init__(self) -> None:
        self.deadlines: list[float] = []

    async def grade(self, *args: object, timeout_s: float, **more: object) -> Verdict:
        self.deadlines.append(timeout_s)
        is_gold = bool(args[2].diff)  # type: ignore[attr-defined]
        return Verdict(resolved=is_gold and timeout_s >= 60, reason="" if timeout_s >= 60 else "did not end in time")


async def test_more_time_is_another_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judges = Judges()

    async def gold(backend: object, task: Task, *more: object) -> Patch:
        return Patch(diff=task.gold_patch)

    monkeypatch.setattr("sandbox.curation.validate.grade", judges.grade)
    monkeypatch.setattr("sandbox.curation.validate.gold_patch", gold)
    tasks = make_tasks(1, 0, 0, "train")

    async def checked(timeout_s: float) -> bool:
        shop = Workshop(
            backend=BreaksFor(),  # type: ignore[arg-type]
            cache_dir=tmp_path,
            run="test",
            requirements=(),
            timeout_s=timeout_s,
            num_jobs=1,
        )
        [check] = [check async for check in validate(shop, tasks, Rules(num_runs=1), tmp_path / "checks.jsonl")]
        return check.kept

    assert not await checked(10.0)
    assert await checked(100.0), "what did not end in 10 s says nothing of 100 s"
    asked = len(judges.deadlines)
    assert await checked(100.0) and len(judges.deadlines) == asked, "what is known is not run again"


@pytest.mark.parametrize(
    "wrong",
    [
        ["--runs", "0"],
        ["--jobs", "0"],
        ["--timeout", "0"],
        ["--timeout", "nan"],
        ["--max-files", "-1"],
        ["--out", "kept.parquet"],
        ["--cache-dir", "/dev/null/x"],
        ["--cache-dir", "~nobody-of-this-name/x"],
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], wrong: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_tasks(make_tasks(1, 0, 0, "train"), tmp_path / "tasks.jsonl")
    try:
        status = main(["validate", "tasks.jsonl", "--out", "kept.jsonl", *wrong], "longhaul tasks")
    except SystemExit as end:
        status = end.code  # type: ignore[assignment]
    assert status == 2
    assert "Traceback" not in capsys.readouterr().err
    assert not list(tmp_path.glob("kept*"))


def test_recipes_that_are_none_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipes.toml").write_bytes(b"\xaa\x00")
    recipes, out = str(tmp_path / "recipes.toml"), str(tmp_path / "out.jsonl")
    assert main(["build", "--recipes", recipes, "--out", out], "longhaul tasks") == 2
    assert "is not a list of packages" in capsys.readouterr().err
