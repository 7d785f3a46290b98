"""What an agent changed is taken whole, whatever state git is in and whatever else lies about; hostile trees and
patches are data."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from benchmarks.sandbox.lost_changes import losses
from sandbox.base import Backend, Limits, Sandbox, SandboxSpec
from sandbox.judgement.checkout import BlockedError, prepare, put_changes, take_patch
from sandbox.judgement.grading import grade
from sandbox.listings import list_tree
from sandbox.patches import MAX_PATCH_FILES, Change, Patch, problem_of
from sandbox.tasks.task import Task

AS = "git -c user.name=a -c user.email=a@b commit -qm"
TASK = Task(task_id="o/1", source="micro", repository="o", issue="i", fail_to_pass=("t",), image="tree")
# name: (how the tree is made, what the agent does, what the change is, what is named as left out)
TREES: dict[str, tuple[str, str, set[str], set[str]]] = {
    "line endings that git warns of": (
        "mkdir pkg; echo 'x = 1' > pkg/m.py; printf '* text=auto\\n' > .gitattributes;"
        " printf 'a = 1\\r\\nb = 2\\r\\n' > pkg/crlf.py",
        "echo 'x = 2' > pkg/m.py; sed -i 's/a = 1/a = 2/' pkg/crlf.py",
        {"pkg/m.py", "pkg/crlf.py"},
        set(),
    ),
    "a nested repository": (
        "mkdir pkg; echo 'x = 1' > pkg/m.py",
        f"echo 'x = 2' > pkg/m.py; mkdir scratch && cd scratch && git init -q && echo a > a && git add a && {AS} base",
        {"pkg/m.py", "scratch/a"},
        set(),
    ),
    "tracked, but ignored": (
        "mkdir pkg; echo 'v = 1' > pkg/version.py; echo version.py > .gitignore; git init -q; git add -A;"
        f" git add -f pkg/version.py; {AS} base",
        "echo 'v = 2' > pkg/version.py",
        {"pkg/version.py"},
        set(),
    ),
    "no git any more": ("echo 1 > a", "rm -rf .git; echo 2 > a", {"a"}, set()),
    "a repository that became a bare one of somewhere else": (
        "echo 1 > a",
        "git config core.bare true; git config core.worktree /tmp; echo 2 > a",
        {"a"},
        set(),
    ),
    "everything ignored": (
        "echo 1 > a",
        "echo '*' > .gitignore; echo 2 > a; echo 3 > b",
        {"a", "b", ".gitignore"},
        set(),
    ),
    "unchanged by assertion": ("echo 1 > a", "git update-index --assume-unchanged a; echo 2 > a", {"a"}, set()),
    "a lock": ("echo 1 > a", "touch .git/index.lock; echo 2 > a", {"a"}, set()),
    "same size, same time": ("echo 1 > a", "touch -r a /tmp/t; echo 2 > a; touch -r /tmp/t a", {"a"}, set()),
    "a filter of the agent's": (
        "echo 1 > a",
        "git config filter.f.clean 'echo 1'; echo 'a filter=f' > .gitattributes; echo 2 > a",
        {"a", ".gitattributes"},
        set(),
    ),
    "a big file beside the fix": (
        "echo 1 > a",
        "echo 2 > a; head -c 6000000 /dev/zero > core.bin",
        {"a"},
        {"core.bin"},
    ),
    "an environment, packages and a cache beside the fix": (
        "echo 1 > a",
        "echo 2 > a; mkdir -p e/lib node_modules/x __pycache__; : > e/pyvenv.cfg;"
        " for i in $(seq 2500); do echo > e/lib/$i.py; done; echo > node_modules/x/i.js; echo > __pycache__/a.pyc",
        {"a"},
        {"e/", "node_modules/"},
    ),
    "a build directory that was given": ("mkdir build; echo 1 > build/a", "echo 2 > build/b", {"build/b"}, set()),
    "links that lead out": ("echo 1 > a", "echo 2 > a; ln -s / root; ln -s ../../etc up", {"a"}, {"root", "up"}),
    "no right to read": ("mkdir d; echo 1 > d/a", "echo 2 > d/a; chmod 000 d/a d", {"d/a"}, set()),
    "no right to reach": (
        "mkdir -p d/e; echo 1 > d/e/a",
        "echo 2 > d/e/a; chmod 644 d/e; chmod 444 d",
        {"d/e/a"},
        set(),
    ),
    "no right to the tree itself": ("echo 1 > a", "echo 2 > a; chmod 000 .", {"a"}, set()),
    "a tree that can be looked at and not entered": ("echo 1 > a", "echo 2 > a; chmod 644 .", {"a"}, set()),
    "a pipe, a socket's place, an empty directory": ("echo 1 > a", "echo 2 > a; mkfifo p; mkdir -p x/y", {"a"}, set()),
    "too deep to look": (
        "echo 1 > a",
        "echo 2 > a; d=n; for i in $(seq 250); do d=$d/n; done; mkdir -p $d; echo x > $d/x",
        {"a"},
        {"/".join(["n"] * 201)},
    ),
    "names that are not UTF-8": ("echo 1 > a", "echo 2 > a; echo x > $'\\377'", {"a"}, {"\\xff"}),
    "a file turned directory, a directory turned file": (
        "echo 1 > a; mkdir d; echo 1 > d/x",
        "rm -r a d; mkdir a; echo 2 > a/y; echo 3 > d",
        {"a", "a/y", "d", "d/x"},
        set(),
    ),
    "a link turned directory": (
        "mkdir real; echo 1 > real/x; ln -s real way",
        "rm way; mkdir way; echo 2 > way/x",
        {"way", "way/x"},
        set(),
    ),
}


def tree(tmp_path: Path, commands: str) -> Path:
    tmp_path.chmod(0o755)
    place = tmp_path / "tree"
    place.mkdir(mode=0o755)
    subprocess.run(["bash", "-ec", commands], cwd=place, check=True, timeout=30, capture_output=True)
    return place


def applied(source: Path, diff: str) -> Path:
    """A copy of a tree with a diff put onto it by plain `git apply`."""
    base = source.with_name("base")
    subprocess.run(["cp", "-a", source, base], check=True, timeout=30)
    subprocess.run(["rm", "-rf", base / ".git"], check=True, timeout=30)
    settings = {**os.environ, "GIT_CEILING_DIRECTORIES": str(base.parent), "GIT_CONFIG_GLOBAL": "/dev/null"}
    subprocess.run(["git", "apply", "-"], cwd=base, input=diff.encode(), env=settings, check=True, timeout=30)
    return base


async def open_tree(backend: Backend, source: Path) -> Sandbox:
    return await backend.create(SandboxSpec(run="test", lease="l", source=source, limits=Limits(disk_mib=128)))


@pytest.mark.parametrize("case", TREES)
async def test_the_change_is_what_differs(namespace: Backend, tmp_path: Path, case: str) -> None:
    setup, agent, changed, left_out = TREES[case]
    source = tree(tmp_path, setup)
    async with await open_tree(namespace, source) as sandbox:
        await prepare(sandbox, TASK)
        assert await take_patch(sandbox, TASK) == Patch()
        assert (await sandbox.exec(agent, timeout=60)).exit_code == 0
        patch = await take_patch(sandbox, TASK)
    assert (patch.problem, {change.path for change in patch.changes}) == ("", changed)
    assert {text.partition(": ")[0] for text in patch.left_out} == left_out
    base = applied(source, patch.diff)
    async with await open_tree(namespace, source) as sandbox:
        await put_changes(sandbox, patch.changes)
        assert (await sandbox.list_tree()).records == list_tree(base)


DIST = "mkdir dist; for i in $(seq 2100); do echo $i > dist/$i.js; done; echo 1 > src.txt"
RANDOM = "head -c 1000000 /dev/urandom"
BUILT = f"mkdir build; for i in $(seq 12); do {RANDOM} > build/m$i.so; done; seq 90000 > src.txt"
INCIDENTAL = {  # name: (how the tree is made, what the agent does besides the fix)
    "compiled files that were given are built anew": (
        BUILT,
        "for i in build/*; do head -c 1000000 /dev/urandom > $i; done",
    ),
    "more files are built anew than a patch holds": (DIST, "for i in dist/*; do echo x > $i; done"),
    "more files are deleted than a patch holds": (DIST, "rm -rf dist"),
    "more is deleted than a patch tells": (
        "for i in $(seq 12); do head -c 3000000 /dev/urandom > b$i; done; seq 150000 > src.txt",
        "rm b*",
    ),
    "a directory too big to be taken away has a file in its place": (DIST, "rm -rf dist; echo x > dist"),
}


@pytest.mark.parametrize("case", INCIDENTAL)
async def test_what_is_too_much_costs_nothing_of_the_fix(namespace: Backend, tmp_path: Path, case: str) -> None:
    """In the place of what a file held before, and in that of what stands in its way, too."""
    setup, besides = INCIDENTAL[case]
    source = tree(tmp_path, setup)
    async with await open_tree(namespace, source) as sandbox:
        await prepare(sandbox, TASK)
        done = await sandbox.exec(f"{besides}; echo fixed >> src.txt; echo 1 > added.py", timeout=60)
        assert done.exit_code == 0
        patch = await take_patch(sandbox, TASK)
    assert problem_of(patch) == ""
    assert {"src.txt", "added.py"} <= {change.path for change in patch.changes}
    assert patch.left_out and len(patch.changes) <= MAX_PATCH_FILES
    base = applied(source, patch.diff)
    assert (base / "src.txt").read_text().endswith("\nfixed\n")
    async with await open_tree(namespace, source) as sandbox:
        await put_changes(sandbox, patch.changes)
        assert (await sandbox.list_tree()).records == list_tree(base)


async def test_nothing_is_lost_over_random_behaviours(namespace: Backend) -> None:
    assert await losses(15, seed=7, backend=namespace) == []


async def test_programs_of_the_box_have_no_say(real_backend: Backend, tmp_path: Path) -> None:
    """An agent that owns every program of the place changes one file and hides it."""
    source = tree(tmp_path, "echo 1 > a; echo 1 > b")
    lies = (
        "mkdir -p ~/bin; for p in git find sha256sum sh cat ls readlink; do"
        " for d in /usr/local/bin /usr/bin /bin ~/bin; do"
        " { rm -f $d/$p; printf '#!/usr/bin/python3\\nprint(1)\\n' > $d/$p; chmod +x $d/$p; } 2>/dev/null; done; done;"
        " echo 2 > a; python3 -c \"import os; [os.system('') for _ in ()]; os.symlink('/', 'x')\""
    )
    task = replace(TASK, image=None, files={})
    async with await open_tree(real_backend, source) as sandbox:
        await sandbox.exec(lies, timeout=60)
        patch = await take_patch(sandbox, task)
    assert [change.path for change in patch.changes] == ["a"]
    assert patch.left_out == ("x: a link that leads out of the tree",)


@pytest.mark.parametrize(
    "changes",
    [
        [Change(path="way/file", kind="file", content=b"x")],
        [Change(path="pkg/link/new", kind="file", content=b"x")],
        [Change(path="a/b", kind="link", content=b"x")],
        [Change(path="new", kind="link", content=b"pkg"), Change(path="new/file", kind="file", content=b"x")],
    ],
    ids=["a link of the tree", "a link below", "a file", "a link of the patch"],
)
async def test_no_path_passes_through_a_link(real_backend: Backend, tmp_path: Path, changes: list[Change]) -> None:
    source = tree(tmp_path, "mkdir pkg; ln -s /tmp way; ln -s /usr pkg/link; echo 1 > a")
    async with await open_tree(real_backend, source) as sandbox:
        with pytest.raises(BlockedError):
            await put_changes(sandbox, changes)
        seen = await sandbox.exec("ls /tmp/file /usr/new pkg/file", timeout=20)
        assert seen.text.count("No such file") == 3


async def test_a_link_is_replaced_not_followed(real_backend: Backend, tmp_path: Path) -> None:
    source = tree(tmp_path, "ln -s /tmp/target a; mkdir d; echo 1 > d/x")
    changes = [Change(path=path, kind="file", content=b"mine", executable=True) for path in ("a", "d")]
    async with await open_tree(real_backend, source) as sandbox:
        await put_changes(sandbox, changes)
        seen = await sandbox.exec("cat a d; ls /tmp/target; stat -c %a a; touch /testbed/fine && echo fine", timeout=20)
    assert seen.text.startswith("minemine") and "No such file" in seen.text and seen.text.endswith("755\nfine\n")


def one(path: object = "a", **fields: object) -> Patch:
    return Patch(changes=(Change(path=path, kind="file", **fields),))  # type: ignore[arg-type]


TWO = Change(path="a", kind="file")
BAD: dict[str, Patch] = {
    "a path that is no text": one(3),
    "an absolute path": one("/etc/passwd"),
    "a way up": one("../x"),
    "a way up inside": one("a/../../x"),
    "no path": one(""),
    "a path twice over": one("a//b"),
    "here": one("./a"),
    "NUL": one("a\0b"),
    "a lone surrogate": one("a\ud800"),
    "a byte of a name": one("a\udcff"),
    "git's own": one("x/.GIT/config"),
    "a name too long": one("x" * 256),
    "a path too long": one("/".join(["x" * 200] * 30)),
    "content that is text": one(content="text"),
    "mode that is none": one(executable="yes"),
    "a kind of its own": Patch(changes=(Change(path="a", kind="device"),)),  # type: ignore[arg-type]
    "no list": Patch(changes=7),  # type: ignore[arg-type]
    "no changes": Patch(changes=("a",)),  # type: ignore[arg-type]
    "twice": Patch(changes=(TWO, TWO)),
    "file and directory": Patch(changes=(TWO, Change(path="a/b", kind="file"))),
    "link and directory": Patch(changes=(Change(path="d", kind="link", content=b"x"), Change(path="d/b", kind="file"))),
    "a link to nothing": Patch(changes=(Change(path="a", kind="link"),)),
    "a link out": Patch(changes=(Change(path="a/l", kind="link", content=b"../../x"),)),
    "a link to the root": Patch(changes=(Change(path="a", kind="link", content=b"/"),)),
    "a link with NUL": Patch(changes=(Change(path="a", kind="link", content=b"a\0b"),)),
    "too many": Patch(changes=tuple(Change(path=str(n), kind="file") for n in range(MAX_PATCH_FILES + 1))),
    "too big": Patch(changes=tuple(Change(path=str(n), kind="file", content=bytes(4 << 20)) for n in range(3))),
    "a diff that is bytes": Patch(diff=b"x"),  # type: ignore[arg-type]
    "a diff of surrogates": Patch(diff="\ud800"),
    "a problem that is none": Patch(problem=1),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("case", BAD)
async def test_odd_patches_are_judged_as_such(namespace: Backend, tmp_path: Path, case: str) -> None:
    task = replace(TASK, image=None, files={"a": ""}, test_files={"test_x.py": "def test_x(): pass\n"})
    verdict = await grade(
        namespace, task, BAD[case], run="t", lease="l", limits=Limits(), cache_dir=tmp_path, timeout_s=60
    )
    assert verdict.reward == 0.0 and verdict.reason


PATHS = st.one_of(st.text(max_size=8), st.sampled_from(["a", "a/b", "a/b/c", "..", "/", "\0", "\ud800", "a/"]))
CHANGES = st.builds(
    Change, path=PATHS, kind=st.sampled_from(["file", "link", "deleted"]), content=st.binary(max_size=5)
)


@settings(max_examples=200, deadline=None)
@given(st.lists(CHANGES, max_size=5))
def test_any_patch_has_a_problem_or_none_never_an_error(changes: list[Change]) -> None:
    problem = problem_of(Patch(changes=tuple(changes)))
    assert problem or all("\0" not in c.path and ".." not in c.path.split("/") for c in changes)
