"""From recorded episodes to the evaluation's files."""

import json
from pathlib import Path

import pytest

from cluster.evaluation.evaluation import read_attempts, with_evaluation_tasks, write_evaluation
from protocol.config import Settings
from protocol.messages import TaskRef

TASKS = [TaskRef(task_id=f"t{i}", source="micro", repository="micro-d0", difficulty=i) for i in range(2)]


def record(task: str, member: int, resolved: bool, **more) -> dict:
    fields = {"num_turns": 4, "num_tokens": 90, "end_reason": "submitted", "mean_logprob": -0.1 - 0.3 * (not resolved)}
    return {"episode_id": f"{task}/{member}", "task_id": task, "member": member, "resolved": resolved, **fields, **more}


@pytest.fixture
def run_dir(tmp_path):
    records = [record("t0", 0, False), record("t0", 0, True), record("t1", 0, False), record("other", 0, True)]
    for kind in ("trajectories", "predictions"):
        (tmp_path / kind).mkdir()
    (tmp_path / "trajectories" / "a.jsonl").write_text("\n".join(map(json.dumps, records)) + '\n{"episode')
    (tmp_path / "trajectories" / "b.jsonl").write_text(json.dumps(record("t0", 1, True)) + "\n")
    prediction = {"instance_id": "t0", "model_name_or_path": "m", "model_patch": "diff", "episode_id": "t0/0"}
    (tmp_path / "predictions" / "a.jsonl").write_text(2 * (json.dumps(prediction) + "\n"))
    return tmp_path


def test_every_episode_counts_once_and_torn_lines_and_foreign_tasks_do_not(run_dir):
    attempts = read_attempts(run_dir, {task.task_id: task for task in TASKS})
    assert {(a.task_id, a.run): a.resolved for a in attempts} == {("t0", 0): True, ("t0", 1): True, ("t1", 0): False}


def test_the_files_say_what_the_report_says(run_dir):
    report = write_evaluation(run_dir, TASKS, "tiny")
    assert report is not None and report.pass_at_1.mean == report.pass_at_k[1] == pytest.approx(0.5)
    written = json.loads((run_dir / "evaluation.json").read_text())
    page = (run_dir / "evaluation.md").read_text()
    assert written["not_scored"] == {"no episode of it ended": 1}
    assert written["pass_at_1"]["mean"] == report.pass_at_1.mean
    assert written["by_difficulty"]["1"]["mean"] == 0.0
    assert "| tiny | 2 of 2 | 2 | 50.0 ± 23.6 | 0.0 to 100.0 | 50.0 | 100.0 (1 of 2 tasks) | 4.0 | 90 |" in page
    assert "3 of 4 attempts scored, over 2 of 2 tasks; not scored: 1 (no episode of it ended)." in page
    assert len((run_dir / "predictions.jsonl").read_text().splitlines()) == 1
    assert (run_dir / "risk_coverage.png").read_bytes().startswith(b"\x89PNG")


def test_where_nothing_finished_the_files_say_of_how_much_and_why(tmp_path):
    assert write_evaluation(tmp_path, TASKS, "tiny", 3, {"t0": "no image", "t1": "no image"}) is None
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert written["num_attempts_asked"] == 6 and written["not_scored"] == {"no image": 6}
    assert written["pass_at_1"] is None
    page = (tmp_path / "evaluation.md").read_text()
    assert "0 of 6 attempts scored, over 0 of 2 tasks; not scored: 6 (no image)" in page


def test_a_pass_at_k_is_never_left_out_for_want_of_attempts(run_dir):
    report = write_evaluation(run_dir, TASKS, "tiny", 5)
    assert report is not None and report.pass_at_k == {1: pytest.approx(0.5), 2: 1.0, 5: None}
    assert report.pass_at_k_tasks == {1: 2, 2: 1, 5: 0}
    assert "none (0 of 2 tasks)" in (run_dir / "evaluation.md").read_text()


def test_an_evaluation_takes_held_out_names_or_the_tasks_it_is_told():
    settings = Settings.model_validate({"phase": "eval", "eval": {"tasks": "verified.jsonl"}})
    assert with_evaluation_tasks(settings).tasks.source == "verified.jsonl"
    assert with_evaluation_tasks(Settings(phase="eval")).tasks.split == "heldout"
    assert with_evaluation_tasks(Settings()) == Settings()


def test_a_record_may_hold_any_line_separator(tmp_path: Path) -> None:
    (tmp_path / "trajectories").mkdir()
    record = {"episode_id": "e", "task_id": TASKS[0].task_id, "member": 0, "resolved": True, "num_turns": 1}
    record |= {"num_tokens": 2, "end_reason": "submitted", "mean_logprob": 0.0, "said": "a\u2028b\u0085c\x0bd\x1ce"}
    (tmp_path / "trajectories" / "a.jsonl").write_text(json.dumps(record, ensure_ascii=False) + "\n", encoding="utf-8")
    assert len(read_attempts(tmp_path, {task.task_id: task for task in TASKS})) == 1
