"""No task is both trained on and scored, however a run's tasks are parted."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.evaluation.evaluation import with_evaluation_tasks
from protocol.config import Settings
from protocol.errors import ConfigError
from sandbox.datasets.loading import save_tasks
from sandbox.datasets.of_run import is_held_out, tasks_of_run
from sandbox.tasks.micro import make_tasks
from sandbox.tasks.task import Task

TASKS = [msgspec.structs.replace(task, task_id=f"r__r-{i}") for i, task in enumerate(make_tasks(60, 3, 0, "train"))]


def file_of(tmp_path: Path, tasks: list[Task] | None = None, name: str = "mine.jsonl") -> str:
    save_tasks(TASKS if tasks is None else tasks, tmp_path / name)
    return str(tmp_path / name)


def names(tasks: list[Task]) -> set[str]:
    return {task.task_id for task in tasks}


def test_a_share_is_held_out_and_an_evaluation_takes_just_that(tmp_path: Path) -> None:
    settings = Settings(tasks={"source": file_of(tmp_path)}, eval={"every": 5, "held_out_share": 0.2})
    trained, held_out = tasks_of_run(settings)
    assert len(trained) + len(held_out) == 60 and not names(trained) & names(held_out)
    assert 5 <= len(held_out) <= 20
    never = settings.model_copy(update={"eval": settings.eval.model_copy(update={"every": 0})})
    assert tasks_of_run(never) == (trained, []), "without evaluations beside the training, too, they stay untouched"
    scored = tasks_of_run(with_evaluation_tasks(settings.model_copy(update={"phase": "eval"})))
    assert scored == (held_out, [])
    few = settings.model_copy(update={"eval": settings.eval.model_copy(update={"tasks_in_training": 3})})
    assert tasks_of_run(few) == (trained, held_out[:3])


@given(st.sets(st.text("abc-_1", min_size=1), max_size=30), st.floats(0, 0.5), st.floats(0, 0.5))
def test_a_larger_share_holds_out_the_same_and_more(ids: set[str], one: float, other: float) -> None:
    less, more = sorted((one, other))
    assert {i for i in ids if is_held_out(i, less)} <= {i for i in ids if is_held_out(i, more)}
    assert not any(is_held_out(i, 0.0) for i in ids)


def test_the_same_tasks_are_held_out_of_any_part_and_order(tmp_path: Path) -> None:
    def held(tasks: list[Task]) -> set[str]:
        settings = Settings(tasks={"source": file_of(tmp_path, tasks)}, eval={"every": 1, "held_out_share": 0.3})
        return names(tasks_of_run(settings).held_out)

    assert held(TASKS[::-1]) == held(TASKS)
    assert held(TASKS[:30]) == held(TASKS) & names(TASKS[:30])


def test_the_same_change_under_another_name_is_on_the_same_side(tmp_path: Path) -> None:
    twins = [msgspec.structs.replace(task, task_id=f"other-{i}") for i, task in enumerate(TASKS)]
    settings = Settings(tasks={"source": file_of(tmp_path, TASKS + twins)}, eval={"every": 1, "held_out_share": 0.3})
    trained, held_out = tasks_of_run(settings)
    changes = [{(task.repository, task.gold_patch) for task in part} for part in (trained, held_out)]
    assert not changes[0] & changes[1] and all(changes)


def test_of_a_mixture_every_source_gives_its_share_and_micro_its_split(tmp_path: Path) -> None:
    first, second = file_of(tmp_path, TASKS[:30], "a.jsonl"), file_of(tmp_path, TASKS[30:], "b.jsonl")
    sources = [{"source": first}, {"source": second}, {"source": "micro", "count": 10}]
    settings = Settings(
        tasks={"sources": sources}, eval={"every": 1, "held_out_share": 0.2, "tasks_in_training": 9, "runs": 2}
    )
    trained, held_out = tasks_of_run(settings)
    assert [task.source for task in held_out] == ["a", "b", "micro"] * 3
    assert not names(trained) & names(held_out)
    assert sum(task.source == "micro" for task in trained) == 10, "of micro nothing is taken away"
    scored = tasks_of_run(with_evaluation_tasks(settings.model_copy(update={"phase": "eval"}))).tasks
    assert not names(scored) & names(trained)
    assert {task.source for task in scored} == {"a", "b", "micro"}


def test_what_cannot_be_parted_is_refused_in_a_line(tmp_path: Path) -> None:
    trained = next(task for task in TASKS if not is_held_out(task.task_id, 0.1))
    held = next(task for task in TASKS if is_held_out(task.task_id, 0.1))
    for task, message in ((trained, "holds out none of the 1 tasks"), (held, "leaves no task to train on")):
        source = file_of(tmp_path, [task])
        with pytest.raises(ConfigError, match=message):
            tasks_of_run(Settings(tasks={"source": source}, eval={"every": 1, "held_out_share": 0.1}))
    for tasks, more in (({"source": "x.jsonl"}, {"tasks": "y.jsonl"}), ({"source": "micro"}, {})):
        with pytest.raises(ValueError, match="is not needed"):
            Settings(tasks=tasks, eval={"every": 1, "held_out_share": 0.1, **more})
