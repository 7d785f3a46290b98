"""`pass_rates.json`: how often each task was solved, passed from one stage of a run to the next."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from learner.replay.curriculum import PassRate
from protocol.errors import ConfigError


def read(path: Path) -> dict[str, tuple[int, int]]:
    """(runs, resolved) by task. Raises `ConfigError` if it is missing or something else."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, tuple[int, int]])
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"replay.pass_rates {path}: {error}", kind="pass_rates") from error


def write(path: Path, rates: Mapping[str, PassRate]) -> None:
    """Replace the file as a whole."""
    new = path.with_suffix(".new")
    new.write_bytes(msgspec.json.encode({task: (seen.num_runs, seen.num_resolved) for task, seen in rates.items()}))
    new.replace(path)
