"""Questions about paths: which belong to a test suite, which are built, which a diff names."""

from __future__ import annotations

import posixpath
import re

from sandbox.tasks.diffs import files_of_diff

_TEST_MODULE = re.compile(r"(test_[^/]*|[^/]*_tests?|tests?)\.py")
_TEST_DIRECTORY = re.compile(r"(^|.*/)(\w+_)?tests/|^test/|^testing/")

_FOLDERS_OF_TESTS = frozenset(
    (
        *("test", "tests", "testing", "_testing", "testsuite", "testlib", "testutils", "test_utils", "test_helpers"),
        *("test_support", "testdata", "test_data", "test-data", "fixture", "fixtures", "__fixtures__", "snapshots"),
        *("__snapshots__", "__mocks__", "__tests__", "cassettes", "golden", "goldens", "e2e"),
    )
)
_HELPS_TESTS = re.compile(
    r"_?tests?_?(ing|utils?|helpers?|tools?|cases?|base|common|support|lib|runner)?\.py|\w+_testing\.py"
    r"|.*(_test\.(go|rs|rb|exs?|cc|cpp|dart)|_spec\.rb|[-._](test|spec)\.[cm]?[jt]sx?|\.snap|\.golden)"
    r"|\w*(Tests?|TestCase|IT)\.(java|kt|scala|cs|php|swift|groovy)"
    r"|(jest|vitest|karma|playwright|cypress|ava|mocha|jasmine|wdio)[-.](config|conf|setup)\..*"
    r"|\.mocharc.*|\.rspec|phpunit\.xml.*"
)


def folder_of_tests(path: str) -> str:
    """The innermost folder around a path that by its name holds helpers or data of tests, in whatever language."""
    folders = path.split("/")[:-1]
    places = [place for place, name in enumerate(folders) if name in _FOLDERS_OF_TESTS]
    return "/".join(folders[: places[-1] + 1]) if places else ""


def helps_tests(path: str) -> bool:
    """Whether tests are likely to ask by a file, or to compare with it.

    These are their helpers, data and snapshots, and what sets up their runners.
    """
    return bool(folder_of_tests(path)) or bool(_HELPS_TESTS.fullmatch(posixpath.basename(path)))


_COMPILED = re.compile(
    r"\.(c|cc|cpp|cxx|h|hh|hpp|hxx|inl|pyx|pxd|pxi|f|f90|f95|rs|cu|cuh|m|mm|go|java|i|ll|s|asm)"
    r"(\.(in|src|tp|tmpl|j2|mako))?$"  # templates of such (Tempita's, numpy's)
)


def is_compiled_source(path: str) -> bool:
    """Whether a change of a file shows only once something is built again."""
    return bool(_COMPILED.search(path))


def is_test_file(path: str) -> bool:
    """Whether a path belongs to a test suite, by the conventions of Python projects."""
    return is_test_module(path) or bool(_TEST_DIRECTORY.match(path))


def is_test_module(path: str) -> bool:
    """Whether pytest would look for tests in a file, by its name."""
    return bool(_TEST_MODULE.fullmatch(posixpath.basename(path)))


def paths_of_diff(diff: str) -> set[str]:
    """Paths that a diff names on either side."""
    return {path for file in files_of_diff(diff) for path in (file.before, file.after) if path}
