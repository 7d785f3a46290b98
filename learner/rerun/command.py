"""`longhaul replay RUN_DIR --step N`: a step again, beside what was logged of it, and beside what might have been."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from learner.checkpoints import checkpoint
from learner.ranks.layout import num_ranks
from learner.replay.service.batches import KeptBatches
from learner.rerun.job import Figures
from learner.rerun.ranks import run_ranks
from protocol.config import Settings
from protocol.errors import ConfigError, LonghaulError

_CLOCKS = {"wait_s", "train_s", "publish_s", "step_s", "tokens_per_s"}
_SENT = {"sent_bytes", "version_bytes", "delta_share"}
_ABOUT = {"kind", "time", "step"}
_FIRST = ("loss_mean", "gradient_norm", "reward_mean", "entropy_mean")


class Rerun(NamedTuple):
    """A step, as it was logged and as it came out again."""

    step: int
    logged: Figures  # without clocks and what was sent; empty where the log lacks the step
    again: Figures
    what_if: Figures | None

    @property
    def differing(self) -> list[str]:
        """Metrics that are not the same to the last digit."""
        return sorted(name for name in {*self.logged, *self.again} if self.logged.get(name) != self.again.get(name))

    @property
    def is_equal(self) -> bool:
        """Whether all are."""
        return bool(self.logged) and not self.differing


def main(arguments: Sequence[str], program: str = "longhaul replay") -> int:
    """0: as logged, 1: not, or a rank failed, 2: the user's mistake."""
    parser = argparse.ArgumentParser(
        prog=program,
        description="Train one step again from its journaled batch and the checkpoint before it, on CPU or GPUs as the "
        "run did, and compare loss, gradient norm and diagnostics with those logged.",
    )
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("--step", type=int, required=True, help="the step, as metrics.jsonl counts them")
    parser.add_argument(
        "--what-if",
        action="append",
        default=[],
        metavar="SETTING=VALUE",
        help="show beside it how the step would have been with another setting; may be given again",
    )
    parser.add_argument("--json", action="store_true", help="print one object for a program")
    chosen = parser.parse_args(arguments)
    try:
        found = rerun(chosen.run, chosen.step, chosen.what_if)
    except ConfigError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    except LonghaulError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2 if error.label.startswith(("journal", "checkpoint")) else 1
    if chosen.json:
        print(json.dumps({**found._asdict(), "equal": found.is_equal, "differing": found.differing}))
    else:
        _show(found, chosen.what_if)
    return 0 if found.is_equal else 1


def rerun(run_dir: Path, step: int, what_if: Sequence[str] = ()) -> Rerun:
    """Train `step` again, and once more with the settings `NAME=VALUE` of `what_if`.

    Raises:
        ConfigError: no run is there, or a setting is none.
        JournalError, CheckpointError: what the step needs is no more.
        LearnerError: a rank failed.
    """
    if step < 1:
        raise ConfigError(f"--step {step}: expected 1 or more", kind="step")
    settings = _settings(run_dir)
    other = with_settings(settings, what_if)
    start = _start_of(settings, run_dir, step)
    batches = KeptBatches(run_dir)
    for needed in range(step, _version_of(start), -1):
        batches.load(needed, settings.phase)  # says what is missing before anything starts
    ranks = _world_size(settings, start)
    again = run_ranks(run_dir, step, start, settings, settings, ranks)
    beside = run_ranks(run_dir, step, start, settings, other, ranks) if what_if else None
    return Rerun(step, logged_figures(run_dir / "metrics.jsonl", step), again, beside)


def logged_figures(path: Path, step: int) -> Figures:
    """What the log says of a step, as its last life did it; without clocks and what was sent."""
    found: dict[str, Any] = {}
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return {}
    for line in lines:
        if line.startswith(b'{"kind": "step"'):
            record = json.loads(line)
            if record["step"] == step:
                found = record
    return {name: value for name, value in found.items() if name not in _CLOCKS | _SENT | _ABOUT}


def with_settings(settings: Settings, changes: Sequence[str]) -> Settings:
    """`settings` with `NAME=VALUE` in place of some. Raises `ConfigError`."""
    content = settings.model_dump(mode="json")
    for change in changes:
        name, equals, text = change.partition("=")
        *sections, last = name.replace("-", "_").split(".")
        place: Any = content
        for section in sections:
            place = place.get(section) if isinstance(place, Mapping) else None
        if not equals or not isinstance(place, dict) or last not in place or isinstance(place[last], dict):
            raise ConfigError(
                f"--what-if {change}: expected SETTING=VALUE, such as learner.loss.eps_high=0.2", kind="what_if"
            )
        try:
            place[last] = json.loads(text)
        except ValueError:
            place[last] = text
    try:
        return Settings.model_validate(content)
    except ValidationError as error:
        raise ConfigError(
            f"--what-if: {error.errors()[0]['msg']} ({error.errors()[0]['loc']})", kind="what_if"
        ) from error


def _settings(run_dir: Path) -> Settings:
    path = run_dir / "settings.json"
    try:
        return Settings.model_validate_json(path.read_text())
    except OSError as error:
        raise ConfigError(f"{run_dir} is no run directory: {path} cannot be read", kind="run_dir") from error
    except ValidationError as error:
        raise ConfigError(
            f"{path} holds no settings of this version: {error.errors()[0]['msg']}", kind="run_dir"
        ) from error


def _start_of(settings: Settings, run_dir: Path, step: int) -> Path | None:
    """The newest checkpoint before a step; None: the model that the run started from."""
    before = [path for path in checkpoint.kept(run_dir) if _version_of(path) < step]
    if before:
        return before[-1]
    if settings.resume not in (None, "auto"):
        return checkpoint.to_resume(settings, run_dir)
    return None


def _version_of(start: Path | None) -> int:
    return 0 if start is None else int(checkpoint.read_manifest(start)["version"])


def _world_size(settings: Settings, start: Path | None) -> int:
    """As many ranks as wrote the checkpoint, or would start a run here."""
    if start is not None:
        return len(checkpoint.read_manifest(start)["state_files"])
    import torch

    return num_ranks(settings, torch.cuda.device_count())


def _show(found: Rerun, changes: Sequence[str]) -> None:
    names = [name for name in _FIRST if name in found.again]
    names += [name for name in found.again if name not in names]
    names += [name for name in found.logged if name not in names]
    table = Table(title=f"Step {found.step}", title_justify="left")
    for column in ("metric", "logged", "again", "", *([", ".join(changes)] if found.what_if is not None else [])):
        table.add_column(column, justify="left" if column == "metric" else "right", overflow="fold")
    for name in names:
        row = [name, _number(found.logged.get(name)), _number(found.again.get(name))]
        row.append("" if found.logged.get(name) == found.again.get(name) else "[bold red]differs[/]")
        if found.what_if is not None:
            other = found.what_if.get(name)
            row.append(_number(other) if other == found.again.get(name) else f"[bold]{_number(other)}[/]")
        table.add_row(*row)
    console = Console()
    console.print(table)
    if not found.logged:
        console.print("metrics.jsonl has no such step: there is nothing to compare with")
    elif found.is_equal:
        console.print(f"all {len(found.logged)} figures are as they were logged, to the last digit")
    else:
        console.print(
            f"{len(found.differing)} of {len(found.logged)} figures differ: other hardware, threads or versions sum in "
            "another order"
        )


def _number(value: float | None) -> str:
    return "" if value is None else repr(value)
