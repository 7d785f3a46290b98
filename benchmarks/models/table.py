"""The table of families in docs/30-own-model.md: `python -m benchmarks.models.table`.

The verdicts are those of the checks before a start; tests/learner/training/test_families.py computes that what is
called exact is exact, tests/learner/checkpoints/test_wrapper.py the same of text parts, and
`python -m benchmarks.models.in_vllm` of pushes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from transformers.utils import logging

from protocol.errors import ConfigError
from protocol.model_family import ModelFamily
from tiny.families import FAMILIES, NOISY, family_config
from tiny.wrappers import WRAPPERS, wrapper_config

_CONTEXT = 128


def table() -> list[str]:
    """Markdown: one row a family."""
    rows = [f"| `{name}` | {trained} | {pushed} |" for name, (trained, pushed) in verdicts().items()]
    return ["| `model_type`, and form | trained | pushes |", "| --- | --- | --- |", *rows]


def verdicts() -> dict[str, tuple[str, str]]:
    """By family: whether it is trained, and whether generators take new weights of it."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # of token ids that a class assumes and none of these models has
    with tempfile.TemporaryDirectory() as folder:
        found = {}
        for name in (*FAMILIES, *WRAPPERS):
            path = Path(folder) / name
            (wrapper_config if name in WRAPPERS else family_config)(name).save_pretrained(path)
            found[name] = _cells(name, path)
        return found


def _cells(name: str, path: Path) -> tuple[str, str]:
    try:
        family = ModelFamily.read(path)
    except ConfigError:
        return "refused: its `config.json` does not say what is needed", "-"
    if trained := _reason(family, lambda: family.check_trained(_CONTEXT, lora_rank=0)):
        return f"refused: {trained}", "-"
    if name in NOISY:
        return "refused by the self-test at the start: it adds noise while it trains", "-"
    trained = "exact: its text part" if family.wraps else "exact"
    return trained, (f"refused: {pushed}" if (pushed := _reason(family, family.check_pushed)) else "accepted")


def _reason(family: ModelFamily, check: Callable[[], None]) -> str:
    """Why a check refuses, without the directory that it names; empty if it does not."""
    try:
        check()
    except ConfigError as error:
        return str(error).partition(f"({family.model_type}): ")[2]
    return ""


if __name__ == "__main__":
    print("\n".join(table()))
