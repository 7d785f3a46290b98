"""What `--help` of a run says: examples, the settings that people change, then all others, table by table."""

from __future__ import annotations

import shutil
import textwrap
import types
from collections.abc import Iterator
from enum import Enum
from pathlib import PurePath
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

EXAMPLES = (
    ("--phase rft --steps 20 --run-dir runs/rft", "rejection fine-tuning: imitate own successes"),
    ("--model.path runs/rft/checkpoints/step-20/hf --steps 60", "RL (the default phase), from what that left"),
    ("--phase eval --model.path DIR --eval.runs 10", "evaluation: pass@1 with its error; no learner"),
    ("--config configs/micro.toml", "all of them in a row, as a file of stages says"),
    ("--run-dir runs/rft --resume auto", "go on where a run was stopped"),
)
"""Flags, and what they do: one example a phase, and how phases meet."""

EVALUATION_EXAMPLES = (
    ("--model.path DIR --eval.runs 10", "a model directory: pass@1 with its error, pass@k, tables"),
    ("--eval.tasks toolz.jsonl --eval.runs 4", "other tasks than the run's own held-out ones"),
    ("--eval.endpoint http://127.0.0.1:8000/v1 --eval.model NAME", "a model behind an OpenAI-compatible endpoint"),
)
"""The same for an evaluation."""

OFTEN_CHANGED = (
    "config",
    "phase",
    "steps",
    "num_actors",
    "model.path",
    "model.max_context",
    "tasks.source",
    "learner.lr",
    "run_dir",
    "resume",
)
"""The ten that people really change."""

OFTEN_CHANGED_IN_EVALUATIONS = (
    "config",
    "model.path",
    "model.max_context",
    "eval.tasks",
    "eval.runs",
    "eval.endpoint",
    "eval.model",
    "episode.prompt",
    "episode.max_turns",
    "run_dir",
)
"""The same for an evaluation."""

_NARROWEST, _WIDEST = 60, 120
_FLAG_COLUMN = 30


def help_text(model: type[BaseModel], program: str, width: int | None = None, *, evaluation: bool = False) -> str:
    """The whole help of the settings in `model`, in lines of at most `width` characters (default: the terminal's)."""
    width = width or max(_NARROWEST, min(_WIDEST, shutil.get_terminal_size().columns))
    examples = EVALUATION_EXAMPLES if evaluation else EXAMPLES
    often = OFTEN_CHANGED_IN_EVALUATIONS if evaluation else OFTEN_CHANGED
    tables = dict(_tables(model))
    settings = {key: field for fields in tables.values() for key, field in fields.items()}
    lines = [f"usage: {program} [--config FILE.toml] [--SETTING VALUE ...]", ""]
    about = (
        "Train software-engineering agents by asynchronous RL, or score them. Flags win over the file, the file over "
    )
    lines += textwrap.wrap(
        about + "the defaults; `--learner.lr 1e-6` is `lr = 1e-6` under `[learner]` in the file.", width
    )
    lines += ["", "examples:"]
    for flags, meaning in examples:
        lines += [f"  {program} {flags}", f"      {meaning}"]
    lines += ["", "ten settings that people change:"]
    for key in often:
        lines += _entry(key, settings[key], width)
    for table, fields in tables.items():
        others = {
            key: field for key, field in fields.items() if key not in often and not (evaluation and key == "phase")
        }
        if others:
            lines += ["", f"[{table}]" if table else "all others, by table of the file; first those of none:"]
        for key, field in others.items():
            lines += _entry(key, field, width)
    status = "exit status: 0 done, 1 a part failed, 2 bad input (nothing was started), 130 or 143 interrupted"
    lines += ["", *textwrap.wrap(status, width)]
    return "\n".join(lines)


def _tables(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, dict[str, FieldInfo]]]:
    """The settings of every table by their dotted keys; those of the file's top first."""
    sections: list[tuple[str, type[BaseModel]]] = []
    own: dict[str, FieldInfo] = {}
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            sections.append((f"{prefix}{name}", field.annotation))
        else:
            own[f"{prefix}{name}"] = field
    yield prefix.removesuffix("."), own
    for name, section in sections:
        yield from _tables(section, f"{name}.")


def _entry(key: str, field: FieldInfo, width: int) -> list[str]:
    """One setting: its flag and what it takes on the left, what it is on the right; below where the left is long."""
    left = f"  --{key.replace('_', '-')} {_takes(field.annotation)}".rstrip()
    column = _FLAG_COLUMN if width < 100 else _FLAG_COLUMN + 10
    text = " ".join((field.description or "").split())
    if len(left) > width:
        choices = _takes(field.annotation).replace("|", ", ")
        left, text = f"  --{key.replace('_', '-')} NAME", f"{text} One of {choices}."
    default = _default(key, field)
    about = textwrap.wrap(f"{text} [{default}]" if default else text, width - column, break_on_hyphens=False)
    if len(left) < column - 1:
        return [f"{left:{column}}{about[0]}", *(" " * column + line for line in about[1:])]
    return [left, *(" " * column + line for line in about)]


def _takes(annotation: Any) -> str:
    """What to write behind the flag: `N`, `X`, `a|b`; nothing for a switch."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _takes(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return "|".join(_takes(part) for part in get_args(annotation) if part is not type(None))
    if origin is Literal:
        return "|".join(map(str, get_args(annotation)))
    if origin is tuple:
        return ",".join(_takes(part) for part in get_args(annotation) if part is not Ellipsis)
    if origin is list:
        return f"{_takes(get_args(annotation)[0])} (repeat for more)"
    if isinstance(annotation, type):
        if issubclass(annotation, Enum):
            return "|".join(str(member.value) for member in annotation)
        if issubclass(annotation, PurePath):
            return "PATH"
        words = {bool: "", int: "N", float: "X", str: "TEXT"}
        if annotation in words:
            return words[annotation]
    return "VALUE"


def _default(key: str, field: FieldInfo) -> str:
    value = field.default
    if value is None or value == [] or field.is_required():
        return ""
    if isinstance(value, bool):
        return f"on; --no-{key.replace('_', '-')}: off" if value else "off"
    return "default " + (",".join(map(str, value)) if isinstance(value, tuple | list) else str(value))
