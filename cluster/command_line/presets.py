"""Settings that suit a model, where neither flags nor a file say anything: told from its directory alone.

The defaults of `protocol.config` are right for models as small as the one in `assets/`. A model that others trained
wants small steps, room to think and to be told of its tools; a large one wants its activations recomputed.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from learner.training.plan import Shape
from learner.training.split import SPLIT_SETTINGS, choose
from protocol.config import Settings
from protocol.errors import ConfigError
from protocol.model_family import ModelFamily

_MADE_HERE = 20_000_000  # parameters, up to which a model was made for `micro` tasks
_LARGE = 1_000_000_000
_LONG_CONTEXT = 8192
_CONTEXT_ON_CPU, _CONTEXT_ON_GPU = 4096, 32_768
_LOGITS = 16_384 * 1024  # elements of a chunk on CPU: what the default allows a vocabulary of 16k
_MOST_OF_A_TURN = 4  # a turn takes at most this part of an episode's tokens
_THINKS = ("<think>", "enable_thinking", "reasoning_content")


@dataclass(frozen=True)
class Preset:
    """Settings by dotted name, each with why.

    Attributes:
        name: `tiny`, `small` or `large`.
        of: the model that it was told from, in words.
        note: what could not be chosen, and why.
    """

    name: str
    of: str
    values: Mapping[str, tuple[Any, str]] = field(default_factory=dict)
    note: str = ""

    def lines(self, given: set[str]) -> Iterator[str]:
        """For people: what holds because of this preset, for those names that are not `given` otherwise."""
        for key, (value, why) in self.values.items():
            if key not in given:
                yield f"{key} = {_shown(value)}  # preset {self.name}: {why}"
        if self.note:
            yield f"# {self.note}"


def preset_for(directory: Path, max_context: int | None, *, on_gpu: bool) -> Preset | None:
    """The preset of a model directory, None where there is no model to tell it from.

    Args:
        max_context: what the user asks for, if so.
        on_gpu: whether there is memory for long episodes.
    """
    try:
        family = ModelFamily.read(directory)
    except ConfigError:  # the checks before a start say so
        return None
    parameters = Shape.read(directory).parameters
    of = f"{directory} ({_count(parameters)} parameters)"
    if parameters < _MADE_HERE:
        return Preset("tiny", of)
    context = max_context or min(family.max_positions, _CONTEXT_ON_GPU if on_gpu else _CONTEXT_ON_CPU)
    values: dict[str, tuple[Any, str]] = {
        "model.max_context": (context, f"the model knows {family.max_positions:,} positions"),
        "learner.pack_tokens": (context, "micro-batches of one longest episode"),
        "episode.prompt": ("full", "it was not trained on these tools"),
        "episode.max_turns": (40, "as in arXiv 2508.03501, stage 1"),
        "learner.loss.length_threshold": (10, "as in arXiv 2508.03501"),
        "learner.lr": (1e-6, "as in arXiv 2508.03501; weights that others trained take small steps"),
        "learner.betas": ((0.9, 0.999), "as in arXiv 2508.03501"),
    }
    turn, why = (
        (4096, "its chat template lets it think") if thinks(directory) else (1024, "it writes prose beside commands")
    )
    values["episode.max_turn_tokens"] = (min(turn, context // _MOST_OF_A_TURN), why)
    if not on_gpu and family.vocab_size * 1024 > _LOGITS:
        chunk = max(64, _LOGITS // family.vocab_size // 64 * 64)
        values["learner.logprob_chunk"] = (chunk, f"a vocabulary of {family.vocab_size:,}")
    if parameters >= _LARGE or context >= _LONG_CONTEXT:
        values["learner.gradient_checkpointing"] = (True, f"{_count(parameters)} parameters, {context:,} tokens")
    return Preset("small" if parameters < _LARGE else "large", of, values)


def with_split(
    preset: Preset, directory: Path, settings: Settings, given: set[str], gpus_gib: Sequence[float]
) -> Preset:
    """`preset` with this host's GPUs split between generators and learner, where there are two or more and nothing of
    that is `given` (dotted names); a split that cannot be is left to the defaults, and said."""
    if len(gpus_gib) < 2 or given & SPLIT_SETTINGS or settings.phase == "eval" or settings.ray_address:
        return preset
    why = f"{len(gpus_gib)} GPUs of {min(gpus_gib):.0f} GiB"
    try:
        split = choose(Shape.read(directory), settings, len(gpus_gib), min(gpus_gib))
    except ConfigError as error:
        return replace(preset, note=str(error))
    chosen = {name: (value, f"{why}, {split.rank_gib:.0f} GiB a rank") for name, value in split.settings().items()}
    return replace(preset, values={**preset.values, **chosen})


def gpus_gib() -> list[float]:
    """Memory of this host's NVIDIA GPUs; none where their own program does not answer."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
        return [float(line) / 1024 for line in said.split()]
    except (OSError, ValueError, subprocess.SubprocessError):
        return []


def thinks(directory: Path) -> bool:
    """Whether a model's chat template has a place for reasoning."""
    template = "".join(
        (directory / name).read_text(encoding="utf-8", errors="replace")
        for name in ("chat_template.jinja", "tokenizer_config.json")
        if (directory / name).is_file()
    )
    return any(word in template for word in _THINKS)


def under(given: Mapping[str, Any], preset: Preset) -> dict[str, Any]:
    """`given` (nested tables) with the preset's values where it has none."""
    merged = _copied(given)
    for key, (value, _) in preset.values.items():
        *tables, name = key.split(".")
        place: Any = merged
        for table in tables:
            place = place.setdefault(table, {}) if isinstance(place, dict) else None
        if isinstance(place, dict):  # else the parser refuses what is given in a table's place
            place.setdefault(name, value)
    return merged


def _copied(table: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _copied(value) if isinstance(value, Mapping) else value for name, value in table.items()}


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.1f}B" if parameters >= 1e9 else f"{parameters / 1e6:.0f}M"


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(list(value) if isinstance(value, tuple) else value)
