"""A long benchmark goes on where it was interrupted."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import pytest

from benchmarks.resume import Results, digest_of, side_by_side


async def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    measured: list[str] = []

    async def measure(name: str) -> list[str]:
        measured.append(name)
        return [name]

    first = Results(tmp_path / "run" / "results.jsonl")
    for name in ("a", "b", "a"):
        assert await first.once(name, partial(measure, name)) == [name]
    assert measured == ["a", "b"]

    path = tmp_path / "run" / "results.jsonl"
    path.write_bytes(path.read_bytes()[:-4])  # killed while it wrote
    again = Results(path)
    for name in ("a", "b"):
        assert await again.once(name, partial(measure, name)) == [name]
    assert measured == ["a", "b", "b"]
    assert await Results(path).once("b", partial(measure, "b")) == ["b"]
    assert measured == ["a", "b", "b"]


async def test_jobs_run_side_by_side_and_keep_their_order(capsys: pytest.CaptureFixture[str]) -> None:
    running = most = 0

    async def job(number: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(10 - number):
            await asyncio.sleep(0)
        running -= 1
        return number

    assert await side_by_side("jobs", 3, [partial(job, number) for number in range(8)]) == list(range(8))
    assert most == 3
    assert "jobs: 8 of 8" in capsys.readouterr().out


def test_other_code_has_another_digest(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("1")
    before = digest_of([tmp_path / "a.py"])
    assert digest_of([tmp_path / "a.py"]) == before
    (tmp_path / "a.py").write_text("2")
    assert digest_of([tmp_path / "a.py"]) != before
