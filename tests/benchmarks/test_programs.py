"""Every benchmark can be started: all their modules import, and what is a program explains itself."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

import benchmarks

MODULES = sorted(module.name for module in pkgutil.walk_packages(benchmarks.__path__, "benchmarks."))


@pytest.mark.parametrize("name", MODULES)
def test_it_imports_and_says_what_it_is_for(name: str) -> None:
    module = importlib.import_module(name)
    package = importlib.import_module(name.rpartition(".")[0]) if name.endswith("__main__") else module
    assert (module.__doc__ or package.__doc__ or "").strip(), f"{name} has no docstring"
