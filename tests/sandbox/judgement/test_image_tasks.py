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
from tests.sandbox.judgement.image import COMMAND, GOLD, SOUND, TEST_PATCH, Images, edit, git, judged, make_task


async def test_the_agent_sees_no_past_and_no_future(images: Images) -> None:
    task = make_task()
    async with await images.create(SandboxSpec(run="test", lease="l", image="img")) as sandbox:
        before = await sandbox.exec("git -c safe.directory='*' log --all --oneline", timeout=60)
        assert "SECRET" in before.text
        await prepare(sandbox, task)
        seen = await sandbox.exec(
            "git config --global safe.directory '*'; git log --all --oneline; git tag; git reflog; git for-each-ref;"
            " git fsck --unreachable --no-reflogs; git cat-file --batch-all-objects --batch; grep -rs SECRET .",
            timeout=20,
        )
        status = await sandbox.exec("git status --porcelain", timeout=60)
    assert "SECRET" not in seen.text
    assert "test_two" not in seen.text
    assert seen.text.count(" base") >= 1
    assert status.text == ""


async def test_a_repository_inside_costs_the_agent_nothing_of_its_git(images: Images) -> None:
    tree = images._images["img"]
    git(tree, "init", "-q", "-b", "main", str(tree.parent / "lib"))
    git(tree.parent / "lib", "commit", "-q", "--allow-empty", "-m", "lib")
    git(tree, "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(tree.parent / "lib"), "helpers")
    (tree / ".gitignore").write_text("version.py\nbuild/\n")
    (tree / "version.py").write_text("v = 1\n")
    git(tree, "add", "-f", "version.py", ".gitignore")
    git(tree, "commit", "-q", "-m", "ignored, and tracked")
    git(tree, "init", "-q", "scratch")
    async with await images.create(SandboxSpec(run="test", lease="l", image="img")) as sandbox:
        await prepare(sandbox, make_task())
        await sandbox.exec(
            "git config --global safe.directory '*'; echo 2 >> version.py; echo 3 >> pkg/mod.py", timeout=20
        )
        assert (await sandbox.exec("git diff --name-only", timeout=20)).text == "pkg/mod.py\nversion.py\n"
        assert (await sandbox.exec("git checkout -- pkg version.py && git diff", timeout=20)).text == ""


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
        assert (await sandbox.exec("ls tests", timeout=60)).exit_code != 0
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
        seen = await sandbox.exec("cat pkg/mod.py; ls tests; git log --oneline --all", timeout=60)
    assert "return 7" in seen.text
    assert "test_one" not in seen.text
    assert (await judged(images, task, Patch(), cache_dir)).failed == task.fail_to_pass
    gold = await gold_patch(images, task, "test", Limits(), cache_dir)  # type: ignore[arg-type]
    assert (await judged(images, task, gold, cache_dir)).reward == 1.0


async def test_a_set_up_of_any_length_runs(images: Images, cache_dir: Path) -> None:
    tests = make_task().tests
    long = replace(
        tests, setup="# " + "x" * 200_000 + "\ntouch /tmp/set-up", command=f"test -e /tmp/set-up && {COMMAND}"
    )
    assert (await judged(images, make_task(tests=long), edit("pkg/mod.py", SOUND), cache_dir)).reward == 1.0


async def test_a_change_that_cannot_be_built_is_no_fault_of_the_place(images: Images, cache_dir: Path) -> None:
    """Nor is a tree that lacks what the hidden tests are built against."""
    built = replace(make_task().tests, setup="python3 -m py_compile pkg/mod.py && grep -q 'return 2' pkg/mod.py")
    for text in ("def f(:\n", "def f():\n    return 1  # not solved\n"):
        verdict = await judged(images, make_task(tests=built), edit("pkg/mod.py", text), cache_dir)
        assert (verdict.reward, verdict.tampered, verdict.failed) == (0.0, False, make_task().fail_to_pass)
        assert "set-up" in verdict.reason
    assert (await judged(images, make_task(tests=built), Patch(), cache_dir)).reward == 0.0
    assert (await judged(images, make_task(tests=built), edit("pkg/mod.py", SOUND), cache_dir)).reward == 1.0
    for nowhere in (make_task(tests=replace(built, setup="exit 3")), make_task(tests=built, gold_patch="")):
        with pytest.raises(GradingError, match="setup failed"):
            await judged(images, nowhere, edit("pkg/mod.py", "def f(:\n"), cache_dir)


async def test_what_the_agent_alone_compiles_is_built(images: Images, cache_dir: Path) -> None:
    built = replace(make_task().tests, rebuild="cp pkg/mod.pyx pkg/mod.py")
    change = Change(path="pkg/mod.pyx", kind="file", content=SOUND.encode())
    assert (await judged(images, make_task(tests=built), Patch(changes=(change,)), cache_dir)).reward == 1.0
    assert (await judged(images, make_task(tests=built), edit("pkg/mod.py", SOUND), cache_dir)).reward == 1.0
    nowhere = make_task(tests=replace(built, rebuild="exit 3"))
    with pytest.raises(GradingError, match="rebuild failed"):
        await judged(images, nowhere, Patch(changes=(change,)), cache_dir)


async def test_failures_are_named(images: Images, cache_dir: Path) -> None:
    with pytest.raises(SandboxError, match="no image missing"):
        await judged(images, make_task(image="missing"), Patch(), cache_dir)
    with pytest.raises(TaskError, match=r"o__r-1.*test_patch"):
        await judged(images, make_task(test_patch=TEST_PATCH.replace("@@ -0,0", "@@ -5,0")[:60]), Patch(), cache_dir)
    broken = replace(make_task().tests, setup="exit 3")
    with pytest.raises(GradingError, match="setup"):
        await judged(images, make_task(tests=broken), Patch(), cache_dir)
    with pytest.raises(GradingError, match="setup"):
        await judged(images, make_task(tests=broken), edit("pkg/mod.py", SOUND), cache_dir)
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


async def test_a_change_that_cannot_be_built_has_failed(images: Images, cache_dir: Path) -> None:
    task = make_task(tests=replace(make_task().tests, setup="python3 pkg/mod.py"))
    assert (await judged(images, task, edit("pkg/mod.py", SOUND), cache_dir)).reward == 1.0
    verdict = await judged(images, task, edit("pkg/mod.py", "raise SystemExit(1)\n"), cache_dir)
    assert (verdict.reward, verdict.tampered, verdict.failed) == (0.0, False, task.fail_to_pass)
    assert "tests.setup failed" in verdict.reason


async def test_what_builds_a_change_sees_no_tests(images: Images, cache_dir: Path) -> None:
    """Nor does what it leaves running: true bodies would be told from their twins."""
    looks = (
        "import os, time\nif __name__ == '__main__' and os.fork() == 0:\n    os.setsid()\n"
        "    while not os.path.exists('tests/test_mod.py'):\n        time.sleep(0.01)\n"
        "    open('/tmp/seen', 'w').write(open('tests/test_mod.py').read())\n    os._exit(0)\n"
        "def f():\n    return 2 if not os.path.exists('/tmp/seen') else 1\n"
    )
    task = make_task(tests=replace(make_task().tests, setup="python3 pkg/mod.py >/dev/null 2>&1"))
    verdict = await judged(images, task, edit("pkg/mod.py", looks), cache_dir)
    assert verdict.reward == 1.0, verdict


class Dead(Images):
    """Gives sandboxes that died."""

    async def create(self, spec: SandboxSpec) -> Sandbox:
        sandbox = await super().create(spec)
        await sandbox.close()
        return sandbox


async def test_a_sandbox_that_dies_is_no_verdict(images: Images, cache_dir: Path) -> None:
    with pytest.raises(SandboxError):
        await judged(Dead(images._inner, images._images), make_task(), Patch(), cache_dir)
