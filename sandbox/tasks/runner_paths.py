"""Paths that decide how tests are found and run, by kind. None of them is a patch's to bring."""

from __future__ import annotations

import posixpath
import re
import sys
from collections.abc import Collection

_START_UP = r"(sitecustomize|usercustomize)"
_KINDS: dict[str, tuple[str, ...]] = {
    # of pytest, tox, nox, nose, nose2, unittest2, green, stestr, behave, coverage, and what calls them
    "configuration of a runner": (
        r"(.*/)?conftest(\..*|/.*)?",
        r"(.*/)?\.?pytest\.(ini|toml)",
        r"(.*/)?(tox|toxfile|noxfile|runtests|run_tests|behave|hypothesis)\.(ini|toml|py|cfg|sh)",
        r"(.*/)?(setup|nose|nose2|unittest|unittest2|green|\.nose|\.green)\.cfg",
        r"(.*/)?(pyproject\.toml|\.noserc|\.behaverc|\.coveragerc|\.?(stestr|testr)\.conf|\.hypothesis/.*)",
        r"(GNU)?[Mm]akefile|[Jj]ustfile|test\.sh",
    ),
    "start-up hook": (
        rf"(.*/)?{_START_UP}(/.*|\..*)?",
        r"(.*/)?[^/]*\._?pth",
        r"(.*/)?pyvenv\.cfg",
    ),
    "metadata of an installed distribution": (
        r"(.*/)?[^/]*\.(dist-info|egg-info|egg|egg-link)(/.*)?",
        r"(.*/)?(entry_points\.txt|direct_url\.json|__editable__[^/]*)",
    ),
    "attributes, filters or modules of git": (r"(.*/)?\.git(attributes|modules|config)?(/.*)?",),
    "file of an environment": (
        r"(.*/)?(\.env([./].*)?|\.envrc|\.flaskenv|\.python-version|\.tool-versions|\.condarc|\.?pip\.conf|\.pypirc)",
        r"(.*/)?(\.pydistutils\.cfg|\.bashrc|\.bash_profile|\.profile|\.bash_env)",
    ),
    "installed environment": (
        r"(.*/)?(\.venv|venv|\.tox|\.nox|\.eggs|site-packages|dist-packages|__pypackages__|\.pixi|\.conda)(/.*)?",
    ),
    "compiled code": (
        r"(.*/)?__pycache__(/.*)?",
        r"(.*/)?[^/]*\.(pyc|pyo|so|pyd|dylib|dll)",
    ),
}
_PATTERNS = {kind: re.compile("|".join(patterns), re.DOTALL) for kind, patterns in _KINDS.items()}
_TOOLS = frozenset(
    (
        *("pytest", "_pytest", "py", "pluggy", "iniconfig", "exceptiongroup", "tomli", "pygments", "colorama"),
        *("nose", "nose2", "unittest2", "tox", "nox", "coverage", "hypothesis", "mock", "xdist", "execnet", "green"),
        *("twisted", "zope", "behave", "stestr", "testtools", "subunit", "trial", "swebench", "pip", "setuptools"),
        *("pkg_resources", "_distutils_hack", "distutils"),
    )
)
_ROOTS = ("", "src/", "lib/")


def kind_of_configuration(path: str) -> str:
    """What a path decides about how tests are found and run; empty when nothing."""
    return next((kind for kind, pattern in _PATTERNS.items() if pattern.fullmatch(path)), "")


def is_test_configuration(path: str) -> bool:
    """Whether a file decides how tests are found and run, or is code that Python runs unasked."""
    return bool(kind_of_configuration(path))


def shadows_a_tool(path: str, import_paths: Collection[str], known: Collection[str]) -> bool:
    """Whether a module stands where `import` would find it in the place of a test tool or of the standard library.

    Args:
        import_paths: of the task, relative to its root.
        known: paths that show that the project itself has a module of that name (of its base tree, of its gold patch).
    """
    roots = {*_ROOTS, *(f"{posixpath.normpath(p)}/" for p in import_paths if posixpath.normpath(p) != ".")}
    for root in roots:
        if not path.startswith(root):
            continue
        top = path[len(root) :].partition("/")[0]
        name = top.partition(".")[0]
        in_package = "/" in path[len(root) :] and path.endswith(".py")  # of no use to an import: cmd/main.go
        is_module = in_package or path[len(root) :] in (name, f"{name}.py")
        is_tool = name in _TOOLS or name in sys.stdlib_module_names or name.startswith("pytest_")
        own = (f"{root}{name}/", f"{root}{name}.py")
        if is_module and is_tool and not any(other.startswith(own) for other in known):
            return True
    return False
