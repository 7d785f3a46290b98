"""Validation goes on where one task breaks the place, keeps what it has and names what it could not check."""

from __future__ import annotations

from pathlib import Path

import pytest

from protocol.errors import SandboxError
from sandbox.base import Sandbox, SandboxSpec
from sandbox.curation.survey import Workshop
from sandbox.curation.validate import NUM_ATTEMPTS, Rules, validate
from sandbox.tasks.micro import make_tasks


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
