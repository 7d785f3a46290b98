"""Generated repositories: the untouched one fails exactly what it says, the gold change mends it."""

import subprocess
import sys
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import ConfigError
from sandbox.tasks.micro import Repository, level_of, make_repository, make_tasks
from sandbox.tasks.micro_faults import FAMILIES
from sandbox.tasks.micro_names import all_names, draw_names
from sandbox.tasks.task import check_task


def failures(files: dict[str, str], tests: str, folder) -> set[str]:
    """Names of the test functions that fail against `files`, run in this process from a folder of their own."""
    for path, text in files.items():
        (folder / path).parent.mkdir(exist_ok=True, parents=True)
        (folder / path).write_text(text)
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        scope: dict = {}
        exec(compile(tests, "test_hidden.py", "exec"), scope)
        return {name for name, test in scope.items() if name.startswith("test_") and not _passes(test)}
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            del sys.modules[name]


def _passes(check, *arguments) -> bool:
    try:
        return check(*arguments) is not False
    except Exception:
        return False


def draw(seed: int, difficulty: int, split: str = "train") -> Repository:
    return make_repository(Random(f"{seed}-{difficulty}"), level_of(difficulty), split)


@pytest.mark.parametrize("difficulty", [0, 1, 2, 3, 5, 8])
def test_the_untouched_repository_fails_exactly_its_tests_and_the_gold_one_none(difficulty, tmp_path):
    for seed in range(40 if difficulty < 3 else 15):
        repository = draw(seed, difficulty)
        assert repository.fail_to_pass
        failing = failures(repository.broken, repository.tests, tmp_path / f"broken{seed}")
        assert failing == set(repository.fail_to_pass), repository
        assert failures(repository.fixed, repository.tests, tmp_path / f"fixed{seed}") == set(), repository


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), family=st.sampled_from(sorted(FAMILIES)))
def test_every_family_tells_broken_from_fixed(seed, family):
    piece = FAMILIES[family](Random(seed), draw_names(Random(seed), "train"))
    assert all(_holds(piece, piece.fixed))
    assert piece.fault == "import" or not all(_holds(piece, piece.broken))


def _holds(piece, source: str) -> list[bool]:
    scope: dict = {}
    exec((piece.helper.fixed if piece.helper else "") + source, scope)
    return [_passes(lambda *a, value=value: scope[piece.name](*a) == value, *a) for a, value in piece.checks]


def test_heldout_names_are_never_seen_in_training():
    assert not set(all_names("train")) & set(all_names("heldout"))
    words = {w for seed in range(50) for path in draw(seed, 3, "heldout").fixed for w in path[:-3].split("/")}
    assert words <= set(all_names("heldout"))


def test_difficulty_adds_files_faults_and_indirection():
    assert [len(draw(1, d).broken) for d in range(4)] == [3, 4, 5, 6]
    changed = [sum(r.broken[p] != r.fixed[p] for p in r.broken) for r in (draw(s, 5) for s in range(10))]
    assert max(changed) >= 4
    hidden = [r for r in (draw(s, 3) for s in range(20)) if any(f"{n[5:]}(" not in r.patch for n in r.fail_to_pass)]
    assert hidden, "some fault must sit behind another function"


def test_no_module_is_empty():
    assert all(text for d in range(6) for s in range(20) for text in draw(s, d).broken.values())


@pytest.mark.parametrize("difficulty", [0, 1, 3])
def test_tasks_are_valid_distinct_and_the_same_again(difficulty):
    tasks = make_tasks(50, 7, difficulty, "train")
    assert [check_task(task) for task in tasks] == make_tasks(60, 7, difficulty, "train")[:50]
    assert len({task.task_id for task in tasks}) == len({str(task.files) for task in tasks}) == 50
    assert tasks[0].files != make_tasks(1, 8, difficulty, "train")[0].files


def test_the_gold_patch_is_what_git_applies(tmp_path):
    for index, task in enumerate([*make_tasks(3, 0, 0, "heldout"), *make_tasks(3, 0, 4, "train")]):
        folder = tmp_path / str(index)
        for path, text in task.files.items():
            (folder / path).parent.mkdir(exist_ok=True, parents=True)
            (folder / path).write_text(text)
        subprocess.run(["git", "apply", "-"], input=task.gold_patch.encode(), cwd=folder, check=True, timeout=20)
        tests = {f"test_hidden.py::{name}" for name in failures({}, task.test_files["test_hidden.py"], folder)}
        assert not tests & {*task.fail_to_pass, *task.pass_to_pass}


def test_an_unknown_split_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"train and heldout, not 'test'"):
        make_tasks(1, 0, 0, "test")
