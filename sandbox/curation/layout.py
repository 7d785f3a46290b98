"""Where a Python project keeps its source and its tests."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from sandbox.listings import NOT_PART_OF_A_TREE
from sandbox.tasks.runner_paths import is_test_configuration
from sandbox.tasks.test_paths import is_test_file, is_test_module

_ASIDE = frozenset(("docs", "doc", "examples", "example", "benchmarks", "bench", "build", "dist", "scripts", "tools"))
_NO_SOURCE = frozenset(("setup.py", "conftest.py", "noxfile.py", "tasks.py", "fabfile.py"))


class Layout(Struct, frozen=True, kw_only=True):
    """Paths relative to the root of a source tree, sorted."""

    source: tuple[str, ...]  # modules of the package itself
    test_modules: tuple[str, ...]
    test_files: tuple[str, ...]  # all that the tests are made of, modules included
    import_paths: tuple[str, ...]


def layout_of(tree: Path) -> Layout:
    """Find source and tests by the conventions of Python projects."""
    paths = sorted(
        str(path.relative_to(tree))
        for path in tree.rglob("*")
        if path.is_file() and not path.is_symlink() and not _is_aside(path.relative_to(tree))
    )
    tests = [p for p in paths if is_test_file(p) or p.endswith("conftest.py")]
    import_paths = ("src", ".") if (tree / "src").is_dir() else (".",)
    return Layout(
        source=tuple(p for p in paths if _is_source(tree, p) and p not in tests),
        test_modules=tuple(p for p in tests if is_test_module(p)),
        test_files=tuple(tests),
        import_paths=import_paths,
    )


def _is_aside(path: Path) -> bool:
    parts = path.parts
    return parts[0] in _ASIDE or any(p in NOT_PART_OF_A_TREE or p.endswith(".egg-info") for p in parts)


def _is_source(tree: Path, path: str) -> bool:
    if not path.endswith(".py") or is_test_configuration(path) or path in _NO_SOURCE:
        return False
    inner = path.removeprefix("src/")
    top, _, rest = inner.partition("/")
    root = tree / "src" if path != inner else tree
    return (root / top / "__init__.py").is_file() if rest else True
