"""A patch says exactly what changed, and git agrees."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox.diffs import git_diff, patch_between, reverse_diff
from sandbox.listings import list_tree
from sandbox.patches import Change, Patch

NAMES = st.sampled_from(["a.py", "b c.txt", "dir/d.py", "dir/sub/e", "f\tg", "é"])
TEXTS = st.text(alphabet="ab\n\r\x0c é", max_size=40).map(str.encode)
CONTENTS = st.one_of(TEXTS, st.binary(max_size=200))
Files = dict[str, tuple[bytes, bool]]
TREES = st.dictionaries(NAMES, st.tuples(CONTENTS, st.booleans()), max_size=5)


def write_tree(root: Path, files: Files) -> Path:
    root.mkdir(parents=True)
    for name, (content, executable) in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(0o755 if executable else 0o644)
    return root


def git_apply(tree: Path, diff: str) -> None:
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(tree.parent)}
    command = ["git", "apply", "--whitespace=nowarn", "-"]
    subprocess.run(command, cwd=tree, input=diff.encode(), env=environment, check=True, timeout=30)


@settings(max_examples=60, deadline=None)
@given(before=TREES, after=TREES)
def test_git_turns_one_tree_into_the_other(
    tmp_path_factory: pytest.TempPathFactory, before: Files, after: Files
) -> None:
    root = tmp_path_factory.mktemp("trees")
    old, new = write_tree(root / "old", before), write_tree(root / "new", after)
    patch = patch_between(old, new)
    if patch.diff:
        git_apply(old, patch.diff)
    assert list_tree(old) == list_tree(new)
    assert {c.path for c in patch.changes} == {n for n in before.keys() | after.keys() if before.get(n) != after.get(n)}


@settings(max_examples=40, deadline=None)
@given(before=TEXTS.filter(bool), after=TEXTS.filter(bool))
def test_a_turned_diff_undoes(tmp_path_factory: pytest.TempPathFactory, before: bytes, after: bytes) -> None:
    root = tmp_path_factory.mktemp("turned")
    tree = write_tree(root / "tree", {"x.py": (after, False)})
    old, new = (Change(path="x.py", kind="file", content=content) for content in (before, after))
    diff = git_diff([(old, new)])
    if diff:
        git_apply(tree, reverse_diff(diff))
    assert (tree / "x.py").read_bytes() == before


def test_a_turned_diff_brings_files_back(tmp_path: Path) -> None:
    old = Change(path="gone.py", kind="file", content=b"x = 1\n")
    new = Change(path="made.py", kind="file", content=b"y = 2\n", executable=True)
    tree = write_tree(tmp_path / "tree", {"made.py": (new.content, True)})
    git_apply(tree, reverse_diff(git_diff([(old, None), (None, new)])))
    assert {p.name: p.read_bytes() for p in tree.iterdir()} == {"gone.py": b"x = 1\n"}


def test_binary_diffs_are_not_turned() -> None:
    diff = git_diff([(None, Change(path="x", kind="file", content=b"\0\1"))])
    with pytest.raises(ValueError, match="GIT"):
        reverse_diff(diff)


def test_links_and_kind_changes(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    write_tree(old, {"a": (b"text\n", False), "t/x": (b"1\n", False)})
    write_tree(new, {"t/x": (b"1\n", False)})
    (new / "a").symlink_to("t/x")
    patch = patch_between(old, new)
    assert patch.changes == (Change(path="a", kind="link", content=b"t/x"),)
    git_apply(old, patch.diff)
    assert (old / "a").readlink() == Path("t/x")


def test_caches_and_history_are_no_part_of_a_tree(tmp_path: Path) -> None:
    old = write_tree(tmp_path / "old", {"a.py": (b"", False)})
    extra = {"__pycache__/a.pyc": (b"\0", False), ".git/x": (b"", False)}
    new = write_tree(tmp_path / "new", {"a.py": (b"", False), **extra})
    assert patch_between(old, new) == Patch()


def test_changed_lines_are_counted() -> None:
    old, new = (Change(path="x", kind="file", content=text) for text in (b"a\nb\nc\n", b"a\nB\nc\nd\n"))
    assert Patch(diff=git_diff([(old, new)])).num_changed_lines == 3
