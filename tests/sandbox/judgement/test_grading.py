"""The rules of judgement, what is taken from an agent's sandbox, and what it never sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from protocol.errors import GradingError, SandboxError, TaskError
from sandbox.base import Backend, Limits, SandboxSpec
from sandbox.curation.gold import gold_patch
from sandbox.fake import FakeBackend
from sandbox.judgement.canaries import Canaries, disturbed, plant
from sandbox.judgement.grading import Patch, Verdict, grade, judge, take_patch
from sandbox.judgement.protection import allowed_changes
from sandbox.judgement.verdicts import Report, split_outcomes
from sandbox.patches import Change
from sandbox.tasks.micro import make_tasks
from sandbox.tasks.sources import sandbox_spec
from sandbox.tasks.task import STORED_OUTCOMES, Task, TestSpec, check_task

TASK = Task(
    task_id="t/1",
    source="micro",
    repository="r",
    issue="f() is wrong",
    files={"pkg/mod.py": "def f():\n    return 1\n", "pkg/run.sh": "#!/bin/sh\n", "conftest.py": "", "data.bin": "x"},
    fail_to_pass=("tests/test_f.py::test_two",),
    pass_to_pass=("tests/test_f.py::test_callable",),
    test_files={
        "tests/test_f.py": "from pkg.mod import f\ndef test_two():\n    assert f() == 2\n"
        "def test_callable():\n    assert callable(f)\n"
    },
    gold_patch="--- a/pkg/mod.py\n+++ b/pkg/mod.py\n@@ -1,2 +1,2 @@\n def f():\n-    return 1\n+    return 2\n",
)
NONCE = "n" * 32


def honest_report(canaries: Canaries, **changes: Any) -> Report:
    outcomes = dict.fromkeys((*TASK.fail_to_pass, *TASK.pass_to_pass), "passed")
    for pair in (canaries.own, *canaries.inside.values()):
        outcomes |= pair
    fields: dict[str, Any] = {
        "nonce": NONCE,
        "outcomes": outcomes,
        "repeated": [],
        "garbled": 0,
        "finished": True,
        "exit": 0,
        "out_of_time": False,
    }
    return Report(**{**fields, **changes})


@pytest.fixture
def canaries() -> Canaries:
    return plant({p: t for p, t in TASK.test_files.items() if t}, "tests", TASK.fail_to_pass)


def test_an_honest_pass(canaries: Canaries) -> None:
    verdict = judge(TASK, honest_report(canaries), NONCE, canaries)
    assert (verdict.resolved, verdict.tampered, verdict.reward) == (True, False, 1.0)


@pytest.mark.parametrize(
    ("changes", "tampered"),
    [
        ({"nonce": "0" * 32}, True),
        ({"repeated": ["tests/test_f.py::test_two"]}, True),
        ({"garbled": 1}, True),
        ({"finished": False, "exit": 0}, True),
        ({"finished": False, "exit": 1}, True),
        ({"finished": False, "exit": -9}, False),
        ({"out_of_time": True, "finished": False, "exit": None}, False),
    ],
)
def test_a_run_that_does_not_add_up(canaries: Canaries, changes: dict[str, Any], tampered: bool) -> None:
    verdict = judge(TASK, honest_report(canaries, **changes), NONCE, canaries)
    assert (verdict.resolved, verdict.tampered) == (False, tampered)


def test_no_report_is_tampering(canaries: Canaries) -> None:
    assert judge(TASK, "the report is gone", NONCE, canaries).tampered


def test_every_canary_counts(canaries: Canaries) -> None:
    honest = honest_report(canaries)
    for pair in (canaries.own, *canaries.inside.values()):
        for test, expected in pair.items():
            other = "failed" if expected == "passed" else "passed"
            for outcome in (other, None):
                outcomes = {t: o for t, o in honest.outcomes.items() if t != test}
                if outcome:
                    outcomes[test] = outcome
                verdict = judge(TASK, honest_report(canaries, outcomes=outcomes), NONCE, canaries)
                assert (verdict.resolved, verdict.tampered) == (False, True), (test, outcome)


def test_a_module_that_cannot_be_imported_is_no_tampering(canaries: Canaries) -> None:
    verdict = judge(TASK, honest_report(canaries, outcomes=dict(canaries.own)), NONCE, canaries)
    assert (verdict.resolved, verdict.tampered) == (False, False)
    assert disturbed(canaries, dict(canaries.own)) == ""


def test_canaries_have_names_of_their_own(canaries: Canaries) -> None:
    again = plant({p: t for p, t in TASK.test_files.items() if t}, "tests", TASK.fail_to_pass)
    assert canaries.own_path != again.own_path
    names = {test for pair in (canaries.own, *canaries.inside.values()) for test in pair}
    assert len(names) == 4
    assert not names & {*TASK.fail_to_pass, *TASK.pass_to_pass}


OUTCOMES = ("passed", "xfailed", "xpassed", "skipped", "failed", "rerun", None)


@pytest.mark.parametrize("outcome", OUTCOMES)
@pytest.mark.parametrize("expected", STORED_OUTCOMES)
def test_a_test_has_passed_with_its_one_outcome_only(outcome: str | None, expected: str) -> None:
    named = (*TASK.fail_to_pass, *TASK.pass_to_pass)
    task = replace(TASK, tests=TestSpec(expected={} if expected == "passed" else dict.fromkeys(named, expected)))
    passed, failed = split_outcomes(check_task(task), {test: outcome for test in named if outcome})
    assert (passed, failed) == ((named, ()) if outcome == expected else ((), named))


def test_a_cut_name_hides_no_outcome() -> None:
    task = replace(TASK, fail_to_pass=("t.py::d[a",), pass_to_pass=())
    for second, solved in (("passed", True), ("xfailed", False), ("skipped", False)):
        _, failed = split_outcomes(task, {"t.py::d[a b]": "passed", "t.py::d[a c]": second})
        assert (not failed) == solved


@pytest.mark.parametrize("expected", [{"tests/test_f.py::test_two": "failed"}, {"other": "xfailed"}])
def test_what_cannot_be_expected(expected: dict[str, str]) -> None:
    with pytest.raises(TaskError, match=r"tests\.expected"):
        check_task(replace(TASK, tests=TestSpec(expected=expected)))


@pytest.mark.parametrize(
    ("path", "taken"),
    [
        ("pkg/mod.py", True),
        ("pkg/testing_tools.py", True),
        ("latest/x.py", True),
        ("tests/test_f.py", False),
        ("tests/helpers.py", False),
        ("pkg/tests/x.json", False),
        ("pkg/test_mod.py", False),
        ("conftest.py", False),
        ("pkg/conftest.py", False),
        ("setup.cfg", False),
        ("pyproject.toml", False),
        ("sitecustomize.py", False),
        ("a.pth", False),
    ],
)
def test_which_paths_are_taken(path: str, taken: bool) -> None:
    change = Change(path=path, kind="file", content=b"x")
    assert allowed_changes(TASK, [change]) == (([change], []) if taken else ([], [path]))


def test_nothing_takes_the_place_of_a_test_directory() -> None:
    links = [Change(path=path, kind="link", content=b"/tmp") for path in ("tests", "pkg/tests", "pkg")]
    assert allowed_changes(TASK, links)[0] == links[2:]


async def spec_of(task: Task, cache_dir: Path) -> SandboxSpec:
    return sandbox_spec(task, "test", "lease", Limits(), cache_dir)


async def test_every_kind_of_change_is_taken(real_backend: Backend, cache_dir: Path) -> None:
    async with await real_backend.create(await spec_of(TASK, cache_dir)) as sandbox:
        assert await take_patch(sandbox, TASK) == Patch()
        commands = (
            "mv pkg/mod.py pkg/renamed.py; chmod +x pkg/renamed.py; chmod -x pkg/run.sh; rm conftest.py",
            "printf '\\0\\377' > data.bin; ln -s pkg/renamed.py link; mkdir -p deep",
            "mkdir deep/er; echo hi > $'deep/er/new\\nline'",
            "mkdir __pycache__; echo x > __pycache__/m.pyc; mkdir .git; echo x > .git/HEAD; chmod +x data.bin",
        )
        for command in commands:
            assert (await sandbox.exec(command, timeout=60)).exit_code == 0
        patch = await take_patch(sandbox, TASK)
    assert TASK.files is not None
    assert {change.path: change for change in patch.changes} == {
        change.path: change
        for change in (
            Change(path="pkg/mod.py", kind="deleted"),
            Change(path="pkg/renamed.py", kind="file", content=TASK.files["pkg/mod.py"].encode(), executable=True),
            Change(path="conftest.py", kind="deleted"),
            Change(path="data.bin", kind="file", content=b"\0\xff", executable=True),
            Change(path="link", kind="link", content=b"pkg/renamed.py"),
            Change(path="deep/er/new\nline", kind="file", content=b"hi\n"),
        )
    }
    assert "GIT binary patch" in patch.diff


async def test_too_much_is_a_problem_not_an_error(namespace: Backend, cache_dir: Path) -> None:
    async with await namespace.create(await spec_of(TASK, cache_dir)) as sandbox:
        await sandbox.exec("head -c 20000000 /dev/zero > big", timeout=20)
        patch = await take_patch(sandbox, TASK)
    assert "big" in patch.problem
    assert (await judged(namespace, TASK, patch, cache_dir)).reward == 0.0


async def test_the_agent_sees_no_tests_and_no_solution(real_backend: Backend, cache_dir: Path) -> None:
    async with await real_backend.create(await spec_of(TASK, cache_dir)) as sandbox:
        found = await sandbox.exec("grep -rlE 'test_two|return 2' /testbed /tmp /home /opt 2>/dev/null", timeout=20)
        listed = await sandbox.exec("ls -a /testbed", timeout=60)
    assert found.text == ""
    assert set(listed.text.split()) == {".", "..", "pkg", "conftest.py", "data.bin"}


async def judged(backend: Backend, task: Task, patch: Patch, cache_dir: Path, timeout_s: float = 60) -> Verdict:
    return await grade(
        backend, task, patch, run="test", lease="lease", limits=Limits(), cache_dir=cache_dir, timeout_s=timeout_s
    )


def changed(text: str) -> Patch:
    return Patch(changes=(Change(path="pkg/mod.py", kind="file", content=text.encode()),))


async def test_micro_tasks_of_every_level_are_judged(real_backend: Backend, cache_dir: Path) -> None:
    for difficulty in (0, 2):
        [task] = make_tasks(1, 3, difficulty, "train")
        assert (await judged(real_backend, task, Patch(), cache_dir)).reward == 0.0
        gold = await gold_patch(real_backend, task, "test", Limits(), cache_dir)
        assert (await judged(real_backend, task, gold, cache_dir)).reward == 1.0


async def test_tests_that_hang_have_failed(namespace: Backend, cache_dir: Path) -> None:
    patch = changed("def f():\n    while True:\n        pass\n")
    verdict = await judged(namespace, TASK, patch, cache_dir, timeout_s=1)
    assert (verdict.reward, verdict.tampered, verdict.reason) == (0.0, False, "the tests did not end in time")


async def test_a_log_of_50_megabytes_that_is_no_text(namespace: Backend, cache_dir: Path) -> None:
    patch = changed("import os\nfor _ in range(50):\n    os.write(1, b'\\xff' * 1000000)\ndef f():\n    return 2\n")
    assert (await judged(namespace, TASK, patch, cache_dir)).reward == 1.0


async def test_tests_that_fill_the_disk_keep_their_verdict(namespace: Backend, cache_dir: Path) -> None:
    fill = "try:\n    f = open('/tmp/full', 'wb', 0)\n    while True:\n        f.write(b'x' * 1000000)\n"
    patch = changed(f"{fill}except OSError:\n    pass\ndef f():\n    return 1\n")
    limits = Limits(disk_mib=64)
    verdict = await grade(
        namespace, TASK, patch, run="test", lease="l", limits=limits, cache_dir=cache_dir, timeout_s=60
    )
    assert (verdict.reward, verdict.failed) == (0.0, TASK.fail_to_pass), verdict


async def test_a_fail_by_a_flaky_test_is_judged_again(cache_dir: Path, tmp_path: Path) -> None:
    counter = tmp_path / "count"
    source = f"""
from pathlib import Path
path = Path({str(counter)!r})
path.write_text((path.read_text() if path.exists() else "") + "x")
right = len(path.read_text()) > 1
def f():
    return 2 if right else 1
"""
    backend = FakeBackend("flaky")
    for flaky, reward in (((), 0.0), (TASK.fail_to_pass, 1.0)):
        counter.unlink(missing_ok=True)
        task = replace(TASK, flaky=flaky)
        assert (await judged(backend, task, changed(source), cache_dir)).reward == reward
    await backend.close()


@pytest.mark.parametrize(
    ("passes", "reward"), [("1", 0.0), ("11", 1.0), ("10", 0.0), ("101", 0.0), ("1011", 1.0), ("01", 0.0)]
)
async def test_a_reward_is_confirmed_by_another_run(
    cache_dir: Path, tmp_path: Path, passes: str, reward: float
) -> None:
    """The patch is right in those runs of the tests that `passes` marks; a run imports it once."""
    counter = tmp_path / "count"
    source = f"""
from pathlib import Path
path = Path({str(counter)!r})
path.write_text((path.read_text() if path.exists() else "") + "x")
right = {passes!r}[len(path.read_text()) - 1 :][:1] == "1"
def f():
    return 2 if right else 1
"""
    backend = FakeBackend("confirmed")
    assert (await judged(backend, TASK, changed(source), cache_dir)).reward == reward
    await backend.close()


async def test_failures_of_the_place_are_never_a_reward(cache_dir: Path) -> None:
    backend = FakeBackend("broken")
    with pytest.raises(SandboxError):
        await judged(backend, replace(TASK, files=None, image="no/such:image"), Patch(), cache_dir)
    with pytest.raises(TaskError, match="setup_patch"):
        await judged(backend, replace(TASK, setup_patch=TASK.gold_patch * 2), Patch(), cache_dir)
    no_pytest = replace(TASK, tests=TestSpec(runner="pytest"), workdir="/testbed")
    with pytest.raises(GradingError, match="pytest"):
        await judged(backend, no_pytest, Patch(), cache_dir)
    await backend.close()


async def test_a_gold_patch_that_does_not_apply_is_named(cache_dir: Path) -> None:
    backend = FakeBackend("gold")
    wrong = replace(TASK, gold_patch=TASK.gold_patch.replace("return 1", "return 7"))
    with pytest.raises(TaskError, match=r"t/1.*gold_patch"):
        await gold_patch(backend, wrong, "test", Limits(), cache_dir)
    await backend.close()


HELPERS = (
    *("pkg/testing.py", "pkg/_testing.py", "pkg/testing/helper.py", "pkg/test/case.py", "src/pkg/testutils.py"),
    *("testdata/out.json", "pkg/fixtures/a.txt", "web/__snapshots__/a.snap", "golden/a", "a/cassettes/x.yaml"),
    *("pkg/a_test.go", "src/a.test.tsx", "src/a.spec.js", "app/src/test/java/ATest.java", "spec/a_spec.rb"),
    *("jest.config.js", "web/vitest.config.ts", ".mocharc.json", "phpunit.xml.dist", "pkg/array_testing.py"),
)


@pytest.mark.parametrize("path", HELPERS)
def test_what_tests_ask_by_is_not_a_patchs_to_change(path: str) -> None:
    for kind in ("file", "deleted"):
        change = Change(path=path, kind=kind)  # type: ignore[arg-type]
        assert allowed_changes(TASK, [change]) == ([], [path])
        gold = f"--- a/{path}\n+++ b/{path}\n@@ -1 +1 @@\n-a\n+b\n"
        assert allowed_changes(replace(TASK, gold_patch=gold), [change]) == ([change], [])
        assert allowed_changes(replace(TASK, gold_patch=""), [change]) == ([change], []), "nobody knows there"


def test_helpers_of_tests_that_are_the_matter_itself_can_be_worked_on() -> None:
    gold = "--- a/pkg/testing/a.py\n+++ b/pkg/testing/a.py\n@@ -1 +1 @@\n-a\n+b\n"
    changes = [Change(path=path, kind="file") for path in ("pkg/testing/b.py", "pkg/testing/sub/c.py")]
    assert allowed_changes(replace(TASK, gold_patch=gold), changes) == (changes, [])
    link = Change(path="pkg/fixtures", kind="link", content=b"../mine")
    assert allowed_changes(TASK, [link]) == ([], [link.path]), "nor does anything take the place of their folder"
    source = [Change(path=path, kind="file") for path in ("pkg/contest.py", "pkg/latest/a.py", "a/Unit.java", "a/b.go")]
    assert allowed_changes(TASK, source) == (source, [])


async def test_a_helper_of_the_tests_that_asks_nothing(namespace: Backend, cache_dir: Path) -> None:
    asks = "def assert_same(a, b):\n    if a != b:\n        raise AssertionError\n"
    tests = "from pkg.mod import f\nfrom pkg.testing import assert_same\ndef test_two():\n    assert_same(f(), 2)\n"
    task = replace(
        TASK,
        files={**(TASK.files or {}), "pkg/testing.py": asks},
        test_files={"tests/test_f.py": tests},
        pass_to_pass=(),
    )
    blind = Change(path="pkg/testing.py", kind="file", content=b"def assert_same(a, b):\n    pass\n")
    patch = Patch(changes=(blind,))
    verdict = await grade(
        namespace, task, patch, run="test", lease="lease", limits=Limits(), cache_dir=cache_dir, timeout_s=60
    )
    assert (verdict.reward, verdict.ignored) == (0.0, ("pkg/testing.py",)), verdict
