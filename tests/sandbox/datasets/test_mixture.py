"""`[[tasks]]`: several sources with weights and limits of their own, from the file to leases and metrics."""

from collections import Counter
from pathlib import Path

import pytest

from cluster.command_line.cli import parse
from cluster.evaluation.evaluation import with_evaluation_tasks
from learner.replay.curriculum import Curriculum, Mixture
from learner.replay.machine import Replay
from learner.replay.service.status import measure
from protocol.config import Settings
from protocol.errors import ConfigError
from protocol.messages import LeaseRequest
from sandbox.datasets.loading import load_tasks

FILE = """
[[tasks]]
name = "easy"
count = 6
weight = 3.0
[[tasks]]
name = "hard"
difficulty = 1
seed = 5
count = 6
max_turns = 4
max_context = 1024
memory_mib = 700
[episode]
max_turns = 8
"""


@pytest.fixture
def mixture(tmp_path: Path) -> Settings:
    path = tmp_path / "run.toml"
    path.write_text(FILE)
    settings, _ = parse(["--config", str(path)])
    return settings


def test_a_file_names_sources_with_weights_and_limits(mixture: Settings) -> None:
    assert [(source.name, source.weight) for source in mixture.tasks.sources] == [("easy", 3.0), ("hard", 1.0)]
    assert mixture.episode_limits("hard") == (4, 1024)
    assert mixture.episode_limits("easy") == (8, mixture.model.max_context)
    assert mixture.sandbox_of("hard").memory_mib == 700
    assert mixture.sandbox_of("easy") == mixture.sandbox


def test_tasks_carry_their_source_and_leases_its_limits(mixture: Settings) -> None:
    tasks = load_tasks(mixture.tasks)
    assert Counter(task.source for task in tasks) == {"easy": 6, "hard": 6}
    source_of = {task.task_id: task.source for task in tasks}
    replay = Replay(mixture, [task.ref for task in tasks])
    replay.start(0.0)
    leases = replay.handle(LeaseRequest(actor="a", capacity=400), 0.0).reply.leases
    limits = {source_of[lease.task_id]: (lease.max_turns, lease.max_context) for lease in leases}
    assert limits == {"easy": (8, mixture.model.max_context), "hard": (4, 1024)}
    dispatched = measure(replay)
    assert dispatched["dispatched.easy"] > dispatched["dispatched.hard"] > 0
    assert "pass_rate.hard" in dispatched


def test_draws_follow_the_weights_and_every_source_keeps_its_own_rounds() -> None:
    pools = {"a": [f"a{i}" for i in range(10)], "b": [f"b{i}" for i in range(10)]}
    curricula = {name: Curriculum(pool, {}, 8, 7, adaptive=False) for name, pool in pools.items()}
    mixture = Mixture(curricula, {"a": 3.0, "b": 1.0}, 7)
    drawn = [mixture.draw(number) for number in range(4000)]
    of_a = [task for task in drawn if task[0] == "a"]
    assert 0.7 < len(of_a) / len(drawn) < 0.8
    for first in range(0, 100, 10):
        assert sorted(of_a[first : first + 10]) == sorted(pools["a"])
    again = Mixture(curricula, {"a": 3.0, "b": 1.0}, 7)
    assert [again.draw(number) for number in (3999, 17, 0)] == [drawn[3999], drawn[17], drawn[0]]


def test_an_evaluation_takes_the_held_out_split_of_every_source(mixture: Settings) -> None:
    held_out = with_evaluation_tasks(mixture.model_copy(update={"phase": "eval"}))
    assert [source.split for source in held_out.tasks.sources] == ["heldout", "heldout"]


@pytest.mark.parametrize(
    ("sources", "said"),
    [
        ([{"name": "a"}, {"name": "a"}], "two sources are named 'a'"),
        ([{"max_turns": 900}], "at most episode.max_turns"),
        ([{"max_context": 100}], "must be above episode.max_turn_tokens"),
        ([{"weight": 0}], "greater than 0"),
        ([{"name": "a b"}], "letters, digits"),
        ([{"sauce": "micro"}], "sauce"),
    ],
)
def test_what_cannot_be_mixed_is_refused(sources: list[dict[str, object]], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Settings.model_validate({"tasks": {"sources": sources}})


def test_a_task_in_two_sources_is_refused() -> None:
    settings = Settings.model_validate({"tasks": {"sources": [{"name": "a", "count": 2}, {"name": "b", "count": 2}]}})
    with pytest.raises(ConfigError, match="is in 'a', too"):
        load_tasks(settings.tasks)


def test_a_source_is_named_by_its_file_or_dataset() -> None:
    named = [{"source": "x/verified.jsonl"}, {"source": "SWE-Gym/SWE-Gym"}, {}]
    settings = Settings.model_validate({"tasks": {"sources": named}})
    assert [source.name for source in settings.tasks.sources] == ["verified", "SWE-Gym", "micro"]
