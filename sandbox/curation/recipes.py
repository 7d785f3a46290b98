"""Which released packages tasks are made of (`configs/packages.toml`)."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import msgspec
from msgspec import Struct

from protocol.errors import ConfigError

PYTEST = "pytest==8.4.2"
_PINNED = re.compile(r"[A-Za-z0-9][\w.-]*==[\w.!+-]+")


class Recipe(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One package. `requirement` is pinned (`boltons==25.0.0`)."""

    requirement: str
    newer: str = ""  # version of the newer release of a release pair
    test_requirements: tuple[str, ...] = ()  # pinned, besides pytest
    most: int | None = None  # tasks, of a package whose tests are slow


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    package: list[Recipe]


def read_recipes(path: Path) -> list[Recipe]:
    """The recipes in a TOML file. Raises `ConfigError` naming what is wrong with it."""
    try:
        recipes = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8-sig")), _File).package
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ConfigError(f"{path} is not a list of packages: {error}", kind="packages") from error
    return [check_recipe(recipe) for recipe in recipes]


def check_recipe(recipe: Recipe) -> Recipe:
    """`recipe`, when every version in it is pinned. Raises `ConfigError`."""
    for requirement in (recipe.requirement, *recipe.test_requirements):
        if not _PINNED.fullmatch(requirement):
            raise ConfigError(f"expected a pinned package (boltons==25.0.0), got {requirement!r}", kind="packages")
    return recipe
