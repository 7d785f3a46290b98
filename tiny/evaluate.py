"""Scores a tiny model on held-out `micro` tasks without starting anything: real agent and tools, files in memory.

python -m tiny.evaluate assets/tiny --difficulty 0 --count 256
"""

from __future__ import annotations

import argparse
import asyncio
from collections import Counter
from pathlib import Path
from random import Random

import torch
from msgspec import Struct
from transformers import Qwen2ForCausalLM

from actors.agent.chat import ChatTokenizer
from protocol.config import EpisodeSettings
from sandbox.tasks.micro import level_of, make_repository
from sandbox.tasks.micro_names import Split
from tiny.rollout import Played, SamplerPolicy, play
from tiny.sampler import Sampler


class Score(Struct, frozen=True, kw_only=True):
    """How a policy did."""

    pass_rate: float
    standard_error: float
    turns: float  # mean of an episode
    tokens: float
    format_errors: float  # share of turns
    ends: dict[str, int]


def summarize(played: list[Played]) -> Score:
    """Means over episodes."""
    count = len(played)
    rate = sum(each.solved for each in played) / count
    turns = [step for each in played for step in each.episode.steps]
    return Score(
        pass_rate=rate,
        standard_error=(rate * (1 - rate) / count) ** 0.5,
        turns=len(turns) / count,
        tokens=sum(len(each.episode.history) for each in played) / count,
        format_errors=sum(step.format_error for step in turns) / len(turns),
        ends=dict(Counter(each.episode.end_reason for each in played)),
    )


def evaluate(
    model: Qwen2ForCausalLM,
    tokenizer: ChatTokenizer,
    *,
    difficulty: int = 0,
    count: int = 256,
    seed: int = 0,
    split: Split = "heldout",
    settings: EpisodeSettings | None = None,
    max_context: int = 768,
) -> list[Played]:
    """Sample one episode on each of `count` repositories, all in one batch."""
    settings = settings or EpisodeSettings()
    repositories = [
        make_repository(Random(f"evaluate-{seed}-{difficulty}-{index}"), level_of(difficulty), split)
        for index in range(count)
    ]
    sampler = Sampler(model, count, max_context, temperature=settings.temperature, seed=seed)
    return asyncio.run(play(repositories, SamplerPolicy(sampler), tokenizer, settings, max_context))


def main() -> None:
    """Print the score, and an episode to look at."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--difficulty", type=int, default=0)
    parser.add_argument("--count", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--temperature", type=float, default=1.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = ChatTokenizer.load(options.model)
    model = Qwen2ForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    settings = EpisodeSettings(temperature=options.temperature)
    played = evaluate(
        model, tokenizer, difficulty=options.difficulty, count=options.count, seed=options.seed, settings=settings
    )
    print(tokenizer.decode(played[0].episode.history.token_ids, keep_special=True))
    print(summarize(played))


if __name__ == "__main__":
    main()
