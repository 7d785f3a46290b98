"""The tokens of a recorded episode: as they were sampled, and as the learner saw them."""

from __future__ import annotations

import sqlite3
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from console.run_data.records import Record
from protocol.arrays import unpack_arrays
from protocol.errors import WireError

SHOWN = 2000
"""Tokens of one page."""
_MOST_BYTES = 1 << 28


class Token(NamedTuple):
    """One token of a history."""

    place: int
    id: int
    text: str
    sampled: bool
    version: int  # that sampled it, -1: none did
    logprob: float | None  # when it was sampled
    learner: float | None  # where it was trained
    advantage: float | None
    turn: int  # that begins here, 0: none does

    @property
    def level(self) -> str:
        """Its colour: `given`, or how likely it was from 0 (certain) to 5 (a surprise)."""
        if self.logprob is None:
            return "given"
        return f"l{int(np.searchsorted((0.05, 0.35, 1.0, 2.3, 4.6), -self.logprob))}"


class Tokens(NamedTuple):
    """Some of an episode's tokens."""

    shown: list[Token]
    start: int
    num_all: int
    steps: list[int]  # that trained on it


def read_tokens(
    run_dir: Path, row: sqlite3.Row, record: Record, trained: list[sqlite3.Row], start: int, model: str
) -> Tokens | None:
    """Up to `SHOWN` tokens from `start` on; None where none were recorded.

    Args:
        trained: the episode's rows of the steps that trained on it.
        model: directory whose tokenizer spells the ids; without one they are shown as numbers.
    """
    arrays = _arrays((run_dir / row["file"]).with_suffix(".tokens"), record.token_records)
    if not arrays or not {"ids", "logprobs", "versions", "mask"} <= arrays.keys():
        return None
    num_all = len(arrays["ids"])
    if any(len(array) != num_all for array in arrays.values()):
        return None
    ratios, advantages = np.full(num_all, np.nan, np.float32), np.full(num_all, np.nan, np.float32)
    for step in trained:
        found = _arrays((run_dir / step["file"]).with_suffix(".tokens"), [step["start"], step["size"]])
        if {"places", "log_ratios", "advantages"} <= found.keys():
            inside = (found["places"] >= 0) & (found["places"] < num_all)
            ratios[found["places"][inside]] = found["log_ratios"][inside]
            advantages[found["places"][inside]] = found["advantages"][inside]
    start = min(max(start, 0), max(num_all - 1, 0)) // SHOWN * SHOWN
    spell = _speller(model)
    turns = {m.tokens[0]: n for n, m in enumerate((m for m in record.messages if m.tokens), 1) if m.tokens}
    shown = []
    for place in range(start, min(start + SHOWN, num_all)):
        sampled = bool(arrays["mask"][place])
        logprob = float(arrays["logprobs"][place]) if sampled else None
        ratio = float(ratios[place])
        was_trained = logprob is not None and ratio == ratio
        token = int(arrays["ids"][place])
        shown.append(
            Token(
                place=place,
                id=token,
                text=spell.decode([token], skip_special_tokens=False) if spell else f"{token} ",
                sampled=sampled,
                version=int(arrays["versions"][place]),
                logprob=logprob,
                learner=logprob + ratio if was_trained and logprob is not None else None,
                advantage=float(advantages[place]) if was_trained else None,
                turn=turns.get(place, 0),
            )
        )
    return Tokens(shown, start, num_all, [step["step"] for step in trained])


def _arrays(path: Path, where: list[int]) -> dict[str, np.ndarray]:
    """Empty where nothing readable lies there."""
    if len(where) != 2 or where[0] < 0 or not 0 < where[1] <= _MOST_BYTES:
        return {}
    try:
        with path.open("rb") as file:
            file.seek(where[0])
            return unpack_arrays(file.read(where[1]))
    except (OSError, WireError):
        return {}


@lru_cache(maxsize=4)
def _speller(model: str) -> Tokenizer | None:
    try:
        return Tokenizer.from_file(str(Path(model) / "tokenizer.json"))
    except Exception:  # the library raises its own bare Exception for a file that is missing or another
        return None
