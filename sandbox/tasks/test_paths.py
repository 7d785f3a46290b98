"""Questions about paths: which belong to a test suite, which a diff names."""

from __future__ import annotations

import posixpath
import re

from sandbox.tasks.diffs import files_of_diff

_TEST_MODULE = re.compile(r"(test_[^/]*|[^/]*_tests?|tests?)\.py")
_TEST_DIRECTORY = re.compile(r"(^|.*/)(\w+_)?tests/|^test/|^testing/")


def is_test_file(path: str) -> bool:
    """Whether a path belongs to a test suite, by the conventions of Python projects."""
    return is_test_module(path) or bool(_TEST_DIRECTORY.match(path))


def is_test_module(path: str) -> bool:
    """Whether pytest would look for tests in a file, by its name."""
    return bool(_TEST_MODULE.fullmatch(posixpath.basename(path)))


def paths_of_diff(diff: str) -> set[str]:
    """Paths that a diff names on either side."""
    return {path for file in files_of_diff(diff) for path in (file.before, file.after) if path}
