"""An evaluation beside the training: scored as any other, written once, a point of the curve when it is whole."""

import asyncio
import json
from types import SimpleNamespace

import msgspec
import pytest
from pydantic import ValidationError

from cluster.evaluation import while_training
from cluster.reporting.summary import summarise
from cluster.supervisor import Supervisor
from console.run_data.held_out import held_out
from learner.held_out import Evaluation, Scored
from protocol.config import Settings
from protocol.errors import ConfigError
from protocol.messages import TaskRef
from sandbox.datasets.loading import load_tasks, save_tasks
from sandbox.datasets.of_run import tasks_of_run
from sandbox.tasks.micro import make_tasks

TASKS = [TaskRef(task_id=f"h{i}", source="micro", repository="r") for i in range(4)]


def scored(task, resolved, version, run=0):
    fields = {"num_turns": 3, "num_tokens": 50, "end_reason": "submitted", "mean_logprob": -0.5}
    return Scored(
        task_id=task, run=run, resolved=resolved, oldest_version=version, newest_version=version + 1, **fields
    )


def evaluation(version, *resolved, is_over=True, **more):
    attempts = [scored(f"h{i}", each, version + i) for i, each in enumerate(resolved)]
    return Evaluation(version=version, attempts=attempts, is_over=is_over, **more)


def supervised(tmp_path, evaluations):
    """A supervisor whose buffer knows of `evaluations`; what it wrote and said."""

    class Replay:
        async def remote(self, known):
            return [each for each in evaluations if each.version not in known]

    sunk, said = [], []
    sink = SimpleNamespace(write=lambda kind, values, step: sunk.append((kind, step, values)))
    cluster = SimpleNamespace(files=SimpleNamespace(directory=tmp_path))
    progress = SimpleNamespace(note=said.append)
    supervisor = Supervisor(Settings(eval={"every": 5}), cluster, [], progress, [sink], None, TASKS)
    supervisor.crew.replay = SimpleNamespace(handle=SimpleNamespace(evaluations=Replay()))
    return supervisor, sunk, said


def test_each_is_written_once_and_one_that_is_under_way_is_no_point(tmp_path):
    evaluations = [evaluation(0, True, False, False, False), evaluation(5, True, True, is_over=False)]
    supervisor, sunk, said = supervised(tmp_path, evaluations)
    for _ in range(3):
        asyncio.run(supervisor._collect_evaluations())
    assert [(kind, step, values["pass_at_1"]) for kind, step, values in sunk] == [("eval", 0, 0.25)]
    assert held_out(tmp_path) == [(0, 0.25)]
    assert len(said) == 1 and "pass@1 25.0 ± 21.7, 4 of 4 attempts, sampled by versions 0 to 4" in said[0]
    asyncio.run(supervisor._collect_evaluations(at_the_end=True))
    assert len(sunk) == 1 and "2 of 4 attempts" in said[1] and "was not finished" in said[1]
    evaluations[1] = evaluation(5, True, True, True, False)
    again, sunk, _ = supervised(tmp_path, evaluations)  # a later life of the run
    asyncio.run(again._collect_evaluations())
    assert [step for _, step, _ in sunk] == [5]
    assert held_out(tmp_path) == [(0, 0.25), (5, 0.75)]


def test_what_has_no_score_is_counted_and_named(tmp_path):
    some = evaluation(10, True, False, reasons={"h2": "no image", "h3": "no image"})
    report = while_training.score(some, TASKS, 1)
    while_training.write(tmp_path, some, report)
    written = json.loads((tmp_path / "evaluations" / "version-10" / "evaluation.json").read_text())
    assert written["not_scored"] == {"no image": 2} and written["tasks_not_scored"] == ["h2", "h3"]
    assert (written["pass_at_1"]["mean"], written["pass_at_1_of_all"]) == (0.5, 0.25)
    assert (written["version"], written["oldest_version"], written["newest_version"]) == (10, 10, 12)
    assert while_training.written_versions(tmp_path) == {10}


def test_where_nothing_finished_it_says_so_and_is_no_point(tmp_path):
    none = evaluation(3, reasons=dict.fromkeys(("h0", "h1", "h2", "h3"), "no image"))
    report = while_training.score(none, TASKS, 2)
    while_training.write(tmp_path, none, report)
    assert while_training.metrics(none, report)["episodes_asked"] == 8
    assert "pass_at_1" not in while_training.metrics(none, report)
    assert "no score, 0 of 8 attempts" in while_training.line(none, report)
    assert held_out(tmp_path) == []
    assert while_training.written_versions(tmp_path) == {3}


def test_the_summary_says_where_the_curve_began_and_was_best():
    figures = summarise([([], {})], 1.0, [(0, 0.25), (10, 0.75), (20, 0.5)])
    named = {name: value for name, value in figures.items() if name.startswith("held_out")}
    assert named == {"held_out_first": 0.25, "held_out_last": 0.5, "held_out_best": 0.75, "held_out_best_step": 10}
    assert not any(name.startswith("held_out") for name in summarise([([], {})], 1.0))


def test_of_micro_the_other_split_is_held_out_and_of_others_one_must_be_named(tmp_path):
    assert Settings().held_out is None
    assert Settings(phase="eval", eval={"every": 5}).held_out is None
    micro = Settings(eval={"every": 5, "tasks_in_training": 3}).held_out
    assert micro is not None and (micro.split, micro.count) == ("heldout", 3)
    assert len(load_tasks(micro)) == 3
    with pytest.raises(ValidationError, match=r"name some \(eval\.tasks\), or have a part"):
        Settings(eval={"every": 5}, tasks={"source": "mine.jsonl"})


def test_a_run_is_not_evaluated_on_what_it_trains_on(tmp_path):
    tasks = make_tasks(3, 0, 0, "train")
    save_tasks(tasks[1:], tmp_path / "held.jsonl")
    settings = Settings(eval={"every": 5, "tasks": str(tmp_path / "held.jsonl")}, tasks={"count": 3})
    assert tasks_of_run(Settings(tasks={"count": 2})).held_out == []
    with pytest.raises(ConfigError, match=r"trains on 2 of these tasks, 'micro-train-d0-s0-1' first"):
        tasks_of_run(settings)
    one = settings.model_copy(update={"tasks": settings.tasks.model_copy(update={"count": 1})})
    found = tasks_of_run(one)
    assert (found.tasks, found.held_out) == (tasks[:1], tasks[1:])
    renamed = [msgspec.structs.replace(tasks[0], task_id="another-name")]
    save_tasks(renamed, tmp_path / "held.jsonl")
    with pytest.raises(ConfigError, match=r"'another-name', whose change is that of 'micro-train-d0-s0-0', first"):
        tasks_of_run(settings)
