"""Several runs in a row, each from the model that the one before left: the `stages` of a settings file."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from cluster.command_line.cli import CommandLine, exit_with, parse
from cluster.run_files import newest_checkpoint
from protocol.config import Settings
from protocol.errors import ConfigError, border

_OWN_FLAGS = ("--config", "--run-dir")
_ENDED = "ended_stages.json"


def run_in_a_row(
    arguments: Sequence[str], command_line: CommandLine, run: Callable[[Settings], Coroutine[Any, Any, int]]
) -> int:
    """Run every stage in a directory of its own below the run directory; the first that fails ends the row.

    Flags apply to all stages, over the stages' files. All files are read before the first stage starts. With `--resume
    auto` stages that ended are passed over, the one that was interrupted goes on, and the others follow.
    """
    root = command_line.run_dir or Path("runs") / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    try:
        plan = stage_settings(arguments, command_line, root)
    except ConfigError as error:
        exit_with(error)
    model: Path | None = None
    rates: Path | None = None
    ended = _ended_stages(root) if command_line.resume else []
    for stage in plan:
        if model is not None:
            stage = stage.model_copy(update={"model": stage.model.model_copy(update={"path": str(model)})})
        if rates is not None and stage.replay.pass_rates is None:
            stage = stage.model_copy(update={"replay": stage.replay.model_copy(update={"pass_rates": rates})})
        assert stage.run_dir is not None
        if stage.run_dir.name not in ended:
            if status := asyncio.run(run(stage)):
                return status
            ended = [*ended, stage.run_dir.name]
            _write_ended_stages(root, ended)
        if stage.phase != "eval":
            model = newest_model(stage.run_dir)
            earlier = stage.run_dir / "pass_rates.json"
            rates = earlier if earlier.exists() else rates
    return 0


def stage_settings(arguments: Sequence[str], command_line: CommandLine, root: Path) -> list[Settings]:
    """The settings of every stage. Raises `ConfigError` for a bad file, and for stages within stages."""
    if command_line.resume not in (None, "auto"):
        raise ConfigError(
            f"--resume {command_line.resume}: a row of stages goes on by --resume auto and --run-dir; to continue one "
            "stage alone, start it with its own --config and --run-dir",
            kind="stages",
        )
    if command_line.resume and command_line.run_dir is None:
        raise ConfigError("--resume auto of a row of stages needs its directory: add --run-dir", kind="stages")
    folder = command_line.config.parent if command_line.config else Path()
    flags = _without(arguments, _OWN_FLAGS)
    plan: list[Settings] = []
    for number, file in enumerate(command_line.stages, 1):
        own = [f"--config={folder / file}", *flags, f"--run-dir={root / f'{number}-{file.stem}'}"]
        settings, _ = parse(own, like=plan[-1].model.path if plan else None)
        if settings.stages:
            raise ConfigError(f"{file} is a stage and names stages itself: list them all in one file", kind="stages")
        plan.append(settings)
    return plan


def newest_model(run_dir: Path) -> Path:
    """The Hugging Face directory in a run's newest checkpoint."""
    checkpoint = newest_checkpoint(run_dir)
    if checkpoint is None:
        raise ConfigError(f"{run_dir} left no checkpoint for the next stage to start from", kind="stages")
    return checkpoint / "hf"


def _ended_stages(root: Path) -> list[str]:
    """Directories of the stages that ended well, as an earlier life of this row noted them."""
    path = root / _ENDED
    if not path.exists():
        return []
    with border(ConfigError, f"{path} to list the stages that ended", kind="stages"):
        return msgspec.json.decode(path.read_bytes(), type=list[str])


def _write_ended_stages(root: Path, names: list[str]) -> None:
    """Replace the note as a whole."""
    root.mkdir(parents=True, exist_ok=True)
    new = root / f"{_ENDED}.new"
    new.write_bytes(msgspec.json.encode(names))
    new.replace(root / _ENDED)


def _without(arguments: Sequence[str], flags: Sequence[str]) -> list[str]:
    """Arguments without some flags and their values."""
    kept, skip = [], False
    for argument in arguments:
        if skip:
            skip = False
        elif argument in flags:
            skip = True
        elif not argument.startswith(tuple(f"{flag}=" for flag in flags)):
            kept.append(argument)
    return kept
