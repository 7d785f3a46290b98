"""The list for review: what actors note, what the command shows."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from actors.episodes.episode_runner import Attempt
from actors.episodes.review import ReviewLog, main
from tests.actors.episodes.test_records import attempt


def member(group: str, number: int, *, resolved: bool, marks: tuple[str, ...] = ()) -> Attempt:
    one = attempt(f"{group}/{number}", resolved=resolved)
    trajectory = msgspec.structs.replace(one.trajectory, group_id=group, member=number)
    return msgspec.structs.replace(one, trajectory=trajectory, marks=list(marks))


def test_people_see_what_to_look_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logs = [ReviewLog(tmp_path, name) for name in ("actor-0", "actor-1")]
    for number in range(4):
        logs[number % 2].write(member("alone", number, resolved=number == 3))
        logs[number % 2].write(member("many", number, resolved=True, marks=("tiny: 1",) if number == 0 else ()))
    for log in logs:
        log.close()
    with (tmp_path / "review" / "actor-0.jsonl").open("a") as file:
        file.write('{"episode_id": "cut')
    assert [log.num_marked for log in logs] == [1, 0]
    assert main([str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "alone/3  calc-1: solves what no other member of its group solves" in shown
    assert "many/0  calc-1: tiny: 1" in shown
    assert shown.count("    diff --git a/x b/x") == 2
    assert shown.endswith("2 of 5 rewarded patches to look at, of 8 judged episodes\n")
    assert main([str(tmp_path), "--no-diffs"]) == 0
    assert "diff --git" not in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "review" / "actor-1.jsonl").read_text().splitlines()]
    assert all(("diff" in line) == line["resolved"] for line in lines)


def test_no_run_is_an_error(tmp_path: Path) -> None:
    assert main([str(tmp_path)]) == 2
