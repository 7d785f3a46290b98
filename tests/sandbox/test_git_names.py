"""What git refuses to apply is no part of a change: one such name would cost the fix beside it."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest

from sandbox.listings import difference

TAKEN = (
    "pkg/.gitkeep",
    ".gitmodules",
    ".github/x",
    "pkg/git~2",
    ".gitx",
    "a.git",
    ".git-blame",
    "pkg/a:b",
    "pkg/ .git",
)
REFUSED = (".GIT/config", "pkg/git~1", "GIT~1", "pkg/.git ", "pkg/.git. ./x", ".git::$INDEX_ALLOCATION", "pkg/a\\.git")


def applies(path: str, place: Path, mode: str = "100644") -> bool:
    patch = f"diff --git a/{path} b/{path}\nnew file mode {mode}\n--- /dev/null\n+++ b/{path}\t\n@@ -0,0 +1 @@\n+x\n"
    done = subprocess.run(["git", "apply", "-"], input=patch, cwd=place, text=True, capture_output=True, timeout=30)
    return done.returncode == 0


def record(kind: bytes, path: str) -> bytes:
    return kind + hashlib.sha256(b"x").hexdigest().encode() + b" " + path.encode()


@pytest.mark.parametrize("path", TAKEN + REFUSED)
def test_a_file_is_taken_where_git_takes_its_name(tmp_path: Path, path: str) -> None:
    if "\\" not in path:
        assert applies(path, tmp_path) == (path in TAKEN)
    found = difference(frozenset(), frozenset({record(b"f", path), record(b"f", "fix.py")}))
    assert found.new == tuple(sorted({"fix.py", *((path,) if path in TAKEN else ())}))
    assert bool(found.left_out) == (path in REFUSED)


def test_a_link_may_not_have_every_name(tmp_path: Path) -> None:
    for path in (".gitmodules", "pkg/.GitModules"):
        assert not applies(path, tmp_path, "120000")
        assert difference(frozenset(), frozenset({record(b"l", path)})).left_out
        assert not difference(frozenset(), frozenset({record(b"f", path)})).left_out
    assert applies("pkg/link", tmp_path, "120000")
