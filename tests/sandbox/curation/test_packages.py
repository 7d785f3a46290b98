"""Tasks are made of a released package and of two releases, validated, cached, filtered."""

from __future__ import annotations

import subprocess
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from protocol.config import TaskSettings
from protocol.errors import ConfigError, SandboxError, TaskError
from sandbox.base import Backend, SandboxSpec
from sandbox.curation import commands
from sandbox.curation.commands import main, make_parser, rules_of
from sandbox.curation.injected import inject_faults
from sandbox.curation.layout import layout_of
from sandbox.curation.recipes import PYTEST, Recipe, check_recipe, read_recipes
from sandbox.curation.releases import release_pair
from sandbox.curation.survey import Workshop, open_package
from sandbox.curation.validate import PAPER, Check, Rules, reasons_by_looks, validate, validate_task
from sandbox.datasets.loading import load_tasks, save_tasks
from sandbox.fake import FakeBackend
from sandbox.patches import Patch
from sandbox.tasks.micro import make_tasks
from sandbox.tasks.packages import fetch_sdist
from sandbox.tasks.sources import materialise
from sandbox.tasks.task import Task

OLD = {
    "counts/__init__.py": '"""Counts."""\n\nfrom counts.core import clip, total\n',
    "counts/core.py": '''
def clip(value, low, high):
    """Value, or the nearest bound."""
    if value < low:
        return low
    if value > high:
        return high
    return value


def total(values):
    result = 0
    for value in values:
        result += value
    return result
''',
    "tests/__init__.py": "",
    "tests/test_core.py": """
import pytest
from counts import clip, total

@pytest.mark.parametrize("value, expected", [(1, 2), (3, 3), (9, 5), (2, 2), (5, 5)])
def test_clip(value, expected):
    assert clip(value, 2, 5) == expected

def test_total():
    assert total([1, 2, 3]) == 6
    assert total([]) == 0

@pytest.mark.xfail
def test_known_problem():
    assert clip("a", 1, 2)
""",
    "CHANGES.md": "# 1.0\n\n- first release\n",
    "setup.py": "raise SystemExit('never run')\n",
    "PKG-INFO": "Name: counts\n",
}
NEW = {
    **OLD,
    "counts/core.py": OLD["counts/core.py"] + "\n\ndef mean(values):\n    return total(values) / len(values)\n",
    "counts/__init__.py": '"""Counts."""\n\nfrom counts.core import clip, mean, total\n',
    "tests/test_mean.py": "def test_mean():\n    from counts import mean\n    assert mean([1, 3]) == 2\n",
    "CHANGES.md": "# 1.1\n\n- `mean` of values\n\n# 1.0\n\n- first release\n",
}


def put_sdist(cache_dir: Path, version: str, files: dict[str, str]) -> None:
    """Put a source distribution where the cache looks for it, as pip would."""
    folder = cache_dir / "sdists" / f"counts=={version}"
    folder.mkdir(parents=True, exist_ok=True)
    root = cache_dir / f"counts-{version}"
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    with tarfile.open(folder / f"counts-{version}.tar.gz", "w:gz") as tar:
        tar.add(root, root.name)


@pytest.fixture
def shop(namespace: Backend, cache_dir: Path, run_name: str) -> Workshop:
    put_sdist(cache_dir, "1.0", OLD)
    put_sdist(cache_dir, "1.1", NEW)
    return Workshop(backend=namespace, cache_dir=cache_dir, run=run_name, requirements=(PYTEST,), timeout_s=60)


async def make_faults(shop: Workshop, count: int) -> list[Task]:
    package = await open_package(shop, "counts==1.0")
    return [task async for task in inject_faults(shop, package, count, 0)]


@pytest.mark.slow
async def test_faults_make_valid_tasks(shop: Workshop, tmp_path: Path) -> None:
    tasks = await make_faults(shop, 3)
    assert len(tasks) == 3
    assert {task.metadata["function"] for task in tasks} == {"clip", "total"}
    for task in tasks:
        tree = materialise(task, shop.cache_dir)
        assert tree is not None
        assert not (tree / "tests/test_core.py").exists()
        text = "".join(path.read_text() for path in tree.rglob("*.py"))
        assert "test_clip" not in text
        assert task.metadata["function"] in task.issue
    cache = tmp_path / "checks.jsonl"
    checks = [check async for check in validate(shop, tasks, Rules(num_runs=1), cache)]
    assert all(check.kept and check.num_gold_one == check.num_untouched_zero == 1 for check in checks), checks

    nowhere = replace(shop, backend=NoBackend())
    with cache.open("ab") as file:
        file.write(b'{"of another release": 1}\n{"task_id": "cut off by a ki')
    again = [check async for check in validate(nowhere, tasks, Rules(num_runs=1), cache)]
    assert {check.task_id for check in again} == {task.task_id for task in tasks}
    # other rules: the cache does not count, and what nothing is known of is named and tried again next time
    unknown = [check async for check in validate(nowhere, tasks, Rules(num_runs=2), cache)]
    assert all(check.unchecked and not check.kept for check in unknown)
    assert b"unchecked" not in cache.read_bytes().replace(b'"unchecked":""', b"")

    first = tasks[0]
    wrong = replace(first, task_id="wrong", gold_patch=first.setup_patch)
    assert "gold_patch does not apply" in (await validate_task(shop, wrong, Rules(num_runs=1))).reasons[0]
    easy = replace(first, task_id="easy", fail_to_pass=first.pass_to_pass[:1], pass_to_pass=())
    assert any("untouched repository passes" in r for r in (await validate_task(shop, easy, Rules(num_runs=1))).reasons)


@pytest.mark.slow
async def test_two_releases_make_a_task(shop: Workshop) -> None:
    old, new = await open_package(shop, "counts==1.0"), await open_package(shop, "counts==1.1")
    task = await release_pair(shop, old, new)
    assert task.fail_to_pass == ("tests/test_mean.py::test_mean",)
    assert "tests/test_core.py::test_known_problem" in task.pass_to_pass
    assert "- `mean` of values" in task.issue
    assert "first release" not in task.issue
    assert set(Patch(diff=task.gold_patch).diff.split()) & {"a/counts/core.py", "a/counts/__init__.py"}
    assert "test_mean" not in task.gold_patch
    check = await validate_task(shop, task, Rules(num_runs=1))
    assert check.kept, check
    by_names = await validate_task(shop, task, Rules(num_runs=1, failure_kinds=("ImportError",)))
    assert by_names.reasons == ("tests fail by ImportError",)


async def test_a_flaky_test_is_found_and_judged_again(cache_dir: Path, tmp_path: Path) -> None:
    tests = f"""
from pathlib import Path
from mod import f

def test_two():
    assert f() == 2

def test_every_fourth_time():
    count = Path({str(tmp_path / "count")!r})
    count.write_text((count.read_text() if count.exists() else "") + "x")
    assert len(count.read_text()) % 4
"""
    task = Task(
        task_id="flaky",
        source="s",
        repository="r",
        issue="",
        files={"mod.py": "def f():\n    return 1\n"},
        gold_patch="--- a/mod.py\n+++ b/mod.py\n@@ -1,2 +1,2 @@\n def f():\n-    return 1\n+    return 2\n",
        test_files={"test_mod.py": tests},
        fail_to_pass=("test_mod.py::test_two",),
        pass_to_pass=("test_mod.py::test_every_fourth_time",),
    )
    backend = FakeBackend("flaky")
    shop = Workshop(backend=backend, cache_dir=cache_dir, run="flaky", requirements=(), timeout_s=30)
    check = await validate_task(shop, task, Rules(num_runs=3))
    assert (check.kept, check.num_gold_one, check.flaky) == (True, 3, task.pass_to_pass), check
    (tmp_path / "count").unlink()
    strict = await validate_task(shop, task, Rules(num_runs=3, keep_flaky=False))
    assert (strict.kept, strict.flaky) == (False, task.pass_to_pass), strict
    await backend.close()


class NoBackend:
    """Stands for a backend that cannot be had."""

    name = "none"

    async def create(self, spec: SandboxSpec) -> None:
        raise SandboxError("no sandbox here", kind="unavailable")


def test_layout(tmp_path: Path) -> None:
    names = (
        "src/pkg/a.py",
        "src/pkg/__init__.py",
        "tests/test_a.py",
        "tests/data.txt",
        "docs/x.py",
        "setup.py",
        "conftest.py",
    )
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    layout = layout_of(tmp_path)
    assert layout.source == ("src/pkg/__init__.py", "src/pkg/a.py")
    assert layout.test_modules == ("tests/test_a.py",)
    assert layout.test_files == ("conftest.py", "tests/data.txt", "tests/test_a.py")
    assert layout.import_paths == ("src", ".")


def test_the_sdist_is_the_one_that_the_task_was_made_of(tmp_path: Path) -> None:
    put_sdist(tmp_path, "1.0", OLD)
    assert fetch_sdist("counts==1.0", tmp_path).name == "counts-1.0.tar.gz"
    with pytest.raises(TaskError, match="not the file"):
        fetch_sdist("counts==1.0", tmp_path, "0" * 64)


def test_an_sdist_that_points_outside_is_refused(tmp_path: Path) -> None:
    put_sdist(tmp_path, "1.0", OLD)
    evil = tmp_path / "sdists" / "evil==1"
    evil.mkdir()
    (tmp_path / "x").write_text("x")
    with tarfile.open(evil / "evil-1.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "x", "evil-1/../../x")
    task = Task(task_id="e", source="s", repository="evil", issue="", fail_to_pass=("t",), sdist="evil==1")
    with pytest.raises(TaskError, match="cannot be unpacked"):
        materialise(task, tmp_path)
    assert not list((tmp_path / "sources").rglob("*.py"))


def test_a_cache_inside_a_repository_changes_nothing(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True, timeout=30)
    task = Task(
        task_id="t",
        source="s",
        repository="r",
        issue="",
        fail_to_pass=("t",),
        files={"x.py": "a\n"},
        setup_patch="--- a/x.py\n+++ b/x.py\n@@ -1 +1 @@\n-a\n+b\n",
    )
    tree = materialise(task, tmp_path / "cache")
    assert tree is not None
    assert (tree / "x.py").read_text() == "b\n"


@pytest.mark.parametrize(
    ("rules", "reason"),
    [
        (Rules(max_files=0), "changes 1 files"),
        (Rules(max_lines=1), "changes 2 lines"),
        (Rules(drop_llm_score_at=3.0), "llm_score.issue_text_score is 3.0"),
    ],
)
def test_filters_by_the_record(rules: Rules, reason: str) -> None:
    task = Task(
        task_id="t",
        source="s",
        repository="r",
        issue="",
        fail_to_pass=("t",),
        gold_patch="--- a/x.py\n+++ b/x.py\n@@ -1 +1 @@\n-a\n+b\n",
        metadata={"llm_score": {"issue_text_score": 3.0, "test_score": None, "difficulty_score": 1.0}},
    )
    [found] = reasons_by_looks(task, rules)
    assert reason in found
    assert reasons_by_looks(task, Rules()) == []


@pytest.mark.parametrize(
    ("flags", "rules"),
    [
        ([], Rules()),
        (["--paper"], PAPER),
        (["--paper", "--runs", "5"], replace(PAPER, num_runs=5)),
        (["--max-files", "7", "--max-lines", "499"], Rules(max_files=7, max_lines=499)),
        (["--llm-score", "3", "--drop-flaky"], Rules(drop_llm_score_at=3.0, keep_flaky=False)),
        (["--failure-kind", "ImportError", "--failure-kind", "X"], Rules(failure_kinds=("ImportError", "X"))),
    ],
)
def test_every_filter_is_an_option(flags: list[str], rules: Rules) -> None:
    assert rules_of(make_parser().parse_args(["validate", "t.jsonl", "--out", "o.jsonl", *flags])) == rules


def test_recipes(tmp_path: Path) -> None:
    recipes = read_recipes(Path(__file__).parents[3] / "configs" / "packages.toml")
    assert len(recipes) >= 10
    assert len({recipe.requirement for recipe in recipes}) == len(recipes)
    with pytest.raises(ConfigError, match="pinned"):
        check_recipe(Recipe(requirement="boltons"))
    (tmp_path / "x.toml").write_text("[[package]]\nname = 'boltons'\n")
    with pytest.raises(ConfigError, match="name"):
        read_recipes(tmp_path / "x.toml")


@pytest.mark.slow
def test_the_command_keeps_what_is_valid(tmp_path: Path, cache_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put_sdist(cache_dir, "1.0", OLD)
    out = tmp_path / "tasks.jsonl"
    common = ["--backend", "namespace", "--cache-dir", str(cache_dir)]
    assert main(["build", "counts==1.0", "--count", "1", "--runs", "1", "--out", str(out), *common]) == 0
    assert "1 of 1 tasks kept" in capsys.readouterr().out
    [task] = load_tasks(TaskSettings(source=str(out)))

    unsolvable = replace(task, task_id="unsolvable", gold_patch=task.setup_patch)
    save_tasks([task, unsolvable], tmp_path / "both.jsonl")
    kept = tmp_path / "kept.jsonl"
    assert main(["validate", str(tmp_path / "both.jsonl"), "--runs", "1", "--out", str(kept), *common]) == 0
    said = capsys.readouterr()
    assert "left out unsolvable" in said.err.replace("\n", " ")
    assert [t.task_id for t in load_tasks(TaskSettings(source=str(kept)))] == [task.task_id]


def test_the_command_refuses_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "boltons", "--out", str(tmp_path / "x")]) == 2
    assert "pinned" in capsys.readouterr().err
    assert main(["validate", str(tmp_path / "no.jsonl"), "--out", str(tmp_path / "x")]) == 2
    assert "no task file" in capsys.readouterr().err


def test_the_command_refuses_places_that_take_no_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tasks = tmp_path / "tasks.jsonl"
    save_tasks(make_tasks(2, 0, 0, "train"), tasks)
    before = tasks.read_bytes()
    (tmp_path / "folder").mkdir()
    (tmp_path / "taken.checks.jsonl").mkdir()
    for out, said in (
        (tasks, "is the task file itself"),
        (tmp_path / "sub" / ".." / "tasks.jsonl", "is the task file itself"),
        (tmp_path / "folder", "it is a directory"),
        (tasks / "below", "cannot be written"),
        (tmp_path / "taken.jsonl", "cannot be written"),
    ):
        (tmp_path / "sub").mkdir(exist_ok=True)
        assert main(["validate", str(tasks), "--out", str(out)]) == 2
        shown = capsys.readouterr().err.strip()
        assert said in shown and len(shown.splitlines()) == 1
    assert tasks.read_bytes() == before


@pytest.mark.parametrize("trouble", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_was_built_outlives_an_interruption(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, trouble: BaseException
) -> None:
    async def built(*given: object) -> AsyncIterator[Task]:
        for task in make_tasks(3, 0, 0, "train"):
            yield task

    async def checked(*given: object) -> AsyncIterator[Check]:
        yield Check(task_id=make_tasks(1, 0, 0, "train")[0].task_id, fingerprint="f")
        raise trouble

    monkeypatch.setattr(commands, "build_recipe", built)
    monkeypatch.setattr(commands, "validate", checked)
    out = tmp_path / "tasks.jsonl"
    status = main(["build", "counts==1.0", "--out", str(out), "--backend", "namespace", "--cache-dir", str(tmp_path)])
    assert status == (130 if isinstance(trouble, KeyboardInterrupt) else 1)
    assert len(load_tasks(TaskSettings(source=str(out)))) == 1
    assert len(load_tasks(TaskSettings(source=str(tmp_path / "tasks.built.jsonl")))) == 3
    said = capsys.readouterr().err
    assert "tasks.built.jsonl: validate that file to go on" in said and "Traceback" not in said


def test_a_check_without_reasons_is_kept() -> None:
    assert Check(task_id="t", fingerprint="f").kept
    assert not Check(task_id="t", fingerprint="f", reasons=("flaky",)).kept


@pytest.mark.slow
@pytest.mark.timeout(1800)  # it comes over the network first
async def test_a_package_from_the_index(namespace: Backend, cache_dir: Path, run_name: str) -> None:
    """The real thing: a released package, fetched by pip, its own tests, a fault, the verdicts."""
    shop = Workshop(backend=namespace, cache_dir=cache_dir, run=run_name, requirements=(PYTEST,), timeout_s=120)
    try:
        package = await open_package(shop, "inflection==0.5.1")
    except TaskError as error:
        if error.kind != "pip":
            raise
        pytest.skip(f"no package index answers: {error}")
    [task] = [task async for task in inject_faults(shop, package, 1, 0)]
    assert task.repository == "inflection"
    check = await validate_task(shop, task, Rules(num_runs=1))
    assert check.kept, check
