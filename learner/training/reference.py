"""Which model log-probs are held against: the starting policy, or another model of the same tokenizer.

One at an endpoint is asked by `learner/teacher/`; here it is only seen that the settings suit it.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from learner.objectives.registry import loss_settings, needs_reference
from protocol.config import Settings
from protocol.errors import ConfigError, border
from protocol.model_family import ModelFamily


def checked_reference(settings: Settings, sequence_parallel: int) -> Path | None:
    """Directory of the reference model; None where no loss asks for one, or an endpoint has it.

    Raises:
        ConfigError: it has another tokenizer, its log-probs would not be exact, or Ulysses knows other heads; said
            before anything is loaded.
    """
    loss, start = loss_settings(settings), Path(settings.model.path)
    if not needs_reference(loss):
        return None
    if loss.reference_endpoint is not None:
        if (temperature := settings.episode.temperature) not in (0, 1):
            raise ConfigError(
                f"--learner.loss.reference-endpoint: a server scores at temperature 1, and episodes are sampled at "
                f"{temperature:g}: set --episode.temperature 1, or give a model directory as --learner.loss.reference",
                kind="teacher",
            )
        return None
    path = loss.reference or start
    if path == start:
        return path
    if _vocabulary(path) != _vocabulary(start):
        raise ConfigError(
            f"--learner.loss.reference {path}: its tokenizer is not that of {start}: log-probs of the same token ids "
            "would be of other tokens. Take a model of the same tokenizer",
            kind="tokenizer",
        )
    family = ModelFamily.read(path)
    if family.wraps:
        raise ConfigError(
            f"--learner.loss.reference {path}: it wraps a language model beside other inputs: save its text part as a "
            "model of its own",
            kind="model",
        )
    family.check_trained(settings.model.max_context, lora_rank=0)  # its log-probs are as exact as the policy's
    if sequence_parallel > 1 and _heads(family) != _heads(ModelFamily.read(start)):
        raise ConfigError(
            f"--learner.loss.reference {path}: it has other attention heads than {start}, and Ulysses splits both "
            "alike: set --learner.sequence-parallel 1, or take a model of the same heads",
            kind="sequence_parallel",
        )
    return path


def _heads(family: ModelFamily) -> tuple[int, int, int]:
    return family.heads, family.kv_heads, family.head_size


def _vocabulary(model: Path) -> dict[str, int]:
    with border(ConfigError, f"{model / 'tokenizer.json'} to be a tokenizer", kind="tokenizer"):
        vocabulary: dict[str, int] = Tokenizer.from_file(str(model / "tokenizer.json")).get_vocab()
    return vocabulary
