"""Tasks whose repository, with its history, is in an image: what the agent sees, what is taken, what fails."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from protocol.errors import GradingError, SandboxError, TaskError
from sandbox.base import Limits, Sandbox, SandboxSpec
from sandbox.curation.gold import gold_patch
from sandbox.curation.recipes import PYTEST
from sandbox.datasets.smith import from_swe_smith
from sandbox.judgement.checkout import prepare, take_patch
from sandbox.judgement.grading import Patch, grade
from sandbox.patches import Change
from sandbox.tasks.task import check_task
from tests.sandbox.judgement.image import COMMAND, GOLD, TEST_PATCH, Images, edit, git, judged, make_task


async def test_the_agent_sees_no_past_and_no_future(images: Images) -> None:
    task = make_task()
    async with await images.create(SandboxSpec(run="test", lease="l", image="img")) as sandbox:
        before = await sandbox.exec("git -c safe.directory='*' log --all --oneline", timeout=10)
        assert "SECRET" in before.text
        await prepare(sandbox, task)
        seen = await sandbox.exec(
            "git config --global safe.directory '*'; git log --all --oneline; git tag; git reflog; git for-each-ref;"
            " git fsck --unreachable --no-reflogs; git cat-file --batch-all-objects --batch; grep -rs SECRET .",
            timeout=20,
        )
        status = await sandbox.exec("git status --porcelain", timeout=10)
    assert "SECRET" not in seen.text
    assert "test_two" not in seen.text
    assert seen.text.count(" base") >= 1
    assert status.text == ""


async def test_the_change_is_taken_by_git(images: Images) -> None:
    task = make_task()
    async with await images.create(SandboxSpec(run="test", lease="l", image="img")) as sandbox:
        await prepare(sandbox, task)
        await sandbox.exec(
            "echo x > 'new file'; chmod +x 'new file'; rm pkg/__init__.py; ln -s pkg link; sed -i s/1/2/ pkg/mod.py;"
            "mkdir build; echo junk > build/x; printf '\\0' > bin; git config --global safe.directory '*';"
            "git config --global user.email a@b; git config --global user.name n; git add -A; git commit -qm mine",
            timeout=20,
        )
        patch = await take_patch(sandbox, task)
    assert {change.path: change for change in patch.changes} == {
        change.path: change
        for change in (
            Change(path="new file", kind="file", content=b"x\n", executable=True),
            Change(path="pkg/__init__.py", kind="deleted"),
            Change(path="link", kind="link", content=b"pkg"),
            Change(path="pkg/mod.py", kind="file", content=b"def f():\n    return 2\n"),
            Change(path="bin", kind="file", content=b"\0"),
        )
    }
    assert "+    return 2" in patch.diff


async def test_a_branch_without_its_tests_gets_them_back(images: Images, cache_dir: Path) -> None:
    task = make_task(test_patch="", checkout="smith", hidden_from="smith~1")
    async with await images.create(SandboxSpec(run="test", lease="l", image="img")) as sandbox:
        await prepare(sandbox, task)
        assert (await sandbox.exec("ls tests", timeout=10)).exit_code != 0
    assert (await judged(images, task, Patch(), cache_dir)).failed == task.fail_to_pass
    assert (await judged(images, task, edit("pkg/mod.py", "def f():\n    return 2\n"), cache_dir)).reward == 1.0


async def test_a_bug_that_the_record_brings(images: Images, cache_dir: Path) -> None:
    """SWE-smith: the image is sound and has no branch of the instance; the agent sees neither its tests nor the fix."""
    record = {
        "instance_id": "o__r.abc.func__1",
        "repo": "swesmith/o__r.abc",
        "image_name": "img",
        "patch": GOLD.replace("return 2", "return 7"),
        "problem_statement": "f() should be 1",
        "FAIL_TO_PASS": ["tests/test_one.py::test_one"],
        "PASS_TO_PASS": [],
    }
    tree = images._images["img"]
    (tree / "tests").mkdir(exist_ok=True)
    (tree / "tests" / "test_one.py").write_text("from pkg.mod import f\n\ndef test_one():\n    assert f() == 1\n")
    git(tree, "add", "-A")
    git(tree, "commit", "-q", "-m", "tests")
    task = check_task(from_swe_smith(record))
    command = COMMAND.replace("test_mod", "test_one")
    task = replace(task, tests=replace(task.tests, command=command, requirements=(PYTEST,)))
    async with await images.create(SandboxSpec(run="test", lease="l", image="img")) as sandbox:
        await prepare(sandbox, task)
        seen = await sandbox.exec("cat pkg/mod.py; ls tests; git log --oneline --all", timeout=10)
    assert "return 7" in seen.text
    assert "test_one" not in seen.text
    assert (await judged(images, task, Patch(), cache_dir)).failed == task.fail_to_pass
    gold = await gold_patch(images, task, "test", Limits(), cache_dir)  # type: ignore[arg-type]
    assert (await judged(images, task, gold, cache_dir)).reward == 1.0


async def test_failures_are_named(images: Images, cache_dir: Path) -> None:
    with pytest.raises(SandboxError, match="no image missing"):
        await judged(images, make_task(image="missing"), Patch(), cache_dir)
    with pytest.raises(TaskError, match=r"o__r-1.*test_patch"):
        await judged(images, make_task(test_patch=TEST_PATCH.replace("@@ -0,0", "@@ -5,0")[:60]), Patch(), cache_dir)
    broken = replace(make_task().tests, setup="exit 3")
    with pytest.raises(GradingError, match="setup"):
        await judged(images, make_task(tests=broken), Patch(), cache_dir)
    unknown = replace(make_task().tests, command="sleep 60", parser="pytest")
    verdict = await grade(
        images,  # type: ignore[arg-type]
        make_task(tests=unknown),
        Patch(),
        run="test",
        lease="l",
        limits=Limits(),
        cache_dir=cache_dir,
        timeout_s=0.5,
    )
    assert (verdict.reward, verdict.reason) == (0.0, "the tests did not end in time")


class Dead(Images):
    """Gives sandboxes that died."""

    async def create(self, spec: SandboxSpec) -> Sandbox:
        sandbox = await super().create(spec)
        await sandbox.close()
        return sandbox


async def test_a_sandbox_that_dies_is_no_verdict(images: Images, cache_dir: Path) -> None:
    with pytest.raises(SandboxError):
        await judged(Dead(images._inner, images._images), make_task(), Patch(), cache_dir)
