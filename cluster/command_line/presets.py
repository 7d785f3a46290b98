"""Settings that suit a model, where neither flags nor a file say anything: told from its directory alone.

The defaults of `protocol.config` are right for models as small as the one in `assets/`. A model that others trained
wants small steps, room to think and to be told of its tools; a large one wants its activations recomputed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from learner.training.plan import Shape
from protocol.errors import ConfigError
from protocol.model_family import ModelFamily

_MADE_HERE = 20_000_000  # parameters, up to which a model was made for `micro` tasks
_LARGE = 1_000_000_000
_LONG_CONTEXT = 8192
_CONTEXT_ON_CPU, _CONTEXT_ON_GPU = 4096, 32_768
_LOGITS = 16_384 * 1024  # elements of a chunk: what the default allows a vocabulary of 16k
_MOST_OF_A_TURN = 4  # a turn takes at most this part of an episode's tokens
_THINKS = ("<think>", "enable_thinking", "reasoning_content")


@dataclass(frozen=True)
class Preset:
    """Settings by dotted name, each with why.

    Attributes:
        name: `tiny`, `small` or `large`.
        of: the model that it was told from, in words.
    """

    name: str
    of: str
    values: Mapping[str, tuple[Any, str]] = field(default_factory=dict)

    def lines(self, given: set[str]) -> Iterator[str]:
        """For people: what holds because of this preset, for those names that are not `given` otherwise."""
        for key, (value, why) in self.values.items():
            if key not in given:
                yield f"{key} = {_shown(value)}  # preset {self.name}: {why}"


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
    if family.vocab_size * 1024 > _LOGITS:
        chunk = max(64, _LOGITS // family.vocab_size // 64 * 64)
        values["learner.logprob_chunk"] = (chunk, f"a vocabulary of {family.vocab_size:,}")
    if parameters >= _LARGE or context >= _LONG_CONTEXT:
        values["learner.gradient_checkpointing"] = (True, f"{_count(parameters)} parameters, {context:,} tokens")
    return Preset("small" if parameters < _LARGE else "large", of, values)


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
        place = merged
        for table in tables:
            place = place.setdefault(table, {})
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
