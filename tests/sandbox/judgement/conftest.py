"""An image's repository."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandbox.base import Backend
from tests.sandbox.judgement.image import TESTS, Images, git


@pytest.fixture
def images(namespace: Backend, tmp_path: Path) -> Images:
    """A repository with a past, a future commit that solves the issue, a tag of it, and a branch as SWE-smith has."""
    tree = tmp_path / "repository"
    (tree / "pkg").mkdir(parents=True)
    (tree / "tests").mkdir()
    (tree / "pkg" / "__init__.py").write_text("")
    (tree / "pkg" / "mod.py").write_text("def f():\n    return 1\n")
    (tree / ".gitignore").write_text("build/\n")
    git(tree, "init", "-q", "-b", "main")
    git(tree, "add", "-A")
    git(tree, "commit", "-q", "-m", "base")
    git(tree, "checkout", "-q", "-b", "smith")
    (tree / "tests" / "test_mod.py").write_text(TESTS)
    git(tree, "add", "-A")
    git(tree, "commit", "-q", "-m", "tests")
    git(tree, "rm", "-q", "tests/test_mod.py")
    git(tree, "commit", "-q", "-m", "tests removed")
    git(tree, "checkout", "-q", "main")
    (tree / "pkg" / "mod.py").write_text("def f():\n    return 2  # SECRET\n")
    git(tree, "commit", "-q", "-am", "SECRET fix")
    git(tree, "tag", "v2-SECRET")
    git(tree, "update-ref", "refs/remotes/origin/main", "HEAD")
    git(tree, "reset", "-q", "--hard", "HEAD~1")
    git(tree, "gc", "-q")
    return Images(namespace, {"img": tree})
