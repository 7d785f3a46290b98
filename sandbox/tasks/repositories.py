"""How the repositories of SWE-bench run their tests, for records that do not say it themselves."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable

_PYTEST = "pytest -rA --tb=no -p no:cacheprovider"  # what pytest knew before 6.2, too
_DJANGO_NAME = re.compile(r"(\w+) \(([\w.]+)\)")
_COMMANDS = {
    "astropy/astropy": "pytest -rA -vv -o console_output_style=classic --tb=no",
    "django/django": "./tests/runtests.py --verbosity 2 --settings=test_sqlite --parallel 1",
    "pytest-dev/pytest": "pytest -rA",  # runs itself, at every age
    "sphinx-doc/sphinx": "tox --current-env -epy39 -v --",
    "sympy/sympy": "PYTHONWARNINGS='ignore::UserWarning,ignore::SyntaxWarning' bin/test -C --verbose",
}
_PARSERS = {
    "astropy/astropy": "parse_log_astropy",
    "django/django": "parse_log_django",
    "matplotlib/matplotlib": "parse_log_matplotlib",
    "mwaskom/seaborn": "parse_log_seaborn",
    "psf/requests": "parse_log_requests",
    "pylint-dev/pylint": "parse_log_pylint",
    "scikit-learn/scikit-learn": "parse_log_scikit",
    "sphinx-doc/sphinx": "parse_log_sphinx",
    "sympy/sympy": "parse_log_sympy",
}
_INSTALLS = {  # what builds their compiled sources again, in the images' own environment
    "astropy/astropy": "python -m pip install -e .",
    "matplotlib/matplotlib": "python -m pip install -e .",
    "scikit-learn/scikit-learn": "python -m pip install -v --no-use-pep517 --no-build-isolation -e .",
}

SWE_BENCH = frozenset((*_PARSERS, "pallets/flask", "pydata/xarray", "pytest-dev/pytest"))
"""The repositories that SWE-bench is made of."""
SWE_GYM = frozenset(
    (
        *("pandas-dev/pandas", "Project-MONAI/MONAI", "getmoto/moto", "python/mypy", "dask/dask", "iterative/dvc"),
        *("conan-io/conan", "pydantic/pydantic", "facebookresearch/hydra", "bokeh/bokeh", "modin-project/modin"),
    )
)
"""The repositories that SWE-Gym is made of."""


def test_command(repository: str, version: str, files: list[str]) -> tuple[str, str]:
    """(command that runs the test files, name of the log parser) of a repository at a version."""
    command = _COMMANDS.get(repository, _PYTEST)
    if repository == "django/django":
        if version == "1.9":
            command = "./tests/runtests.py --verbosity 2"
        files = [django_label(path) for path in files]
    parser = _PARSERS.get(repository, "parse_log_pytest")
    return " ".join([command, *map(shlex.quote, files)]), parser


test_command.__test__ = False  # type: ignore[attr-defined]


def install_command(repository: str) -> str:
    """What builds a repository of SWE-bench again; empty where nobody knows."""
    return _INSTALLS.get(repository, "")


def django_modules(tests: Iterable[str]) -> list[str]:
    """Files of the modules that names like `test_x (forms_tests.test_x.FormTests)` tell; some names are sentences."""
    found = set()
    for match in filter(None, map(_DJANGO_NAME.fullmatch, tests)):
        parts = match[2].removesuffix(f".{match[1]}").split(".")  # Python 3.11 names the test once more
        found.add(f"tests/{'/'.join(parts[:-1])}.py" if len(parts) > 1 else "")
    return sorted(found - {""})


def django_label(path: str) -> str:
    """`tests/forms_tests/test_x.py` is run as `forms_tests.test_x`."""
    return path.removeprefix("tests/").removesuffix(".py").replace("/", ".")
