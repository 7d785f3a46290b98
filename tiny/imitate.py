"""Makes the tiny base model from a seed: tokenizer, weights, and a short imitation of the noisy expert.

    python -m tiny.imitate --out assets/tiny

The corpus is real episodes: the real agent, prompts, parser and tools, with the expert in the model's place. The same
seed gives the same corpus, the same batches and, on one thread of the same machine, the same weights.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import Random

import msgspec
import torch
from msgspec import Struct
from rich.progress import track
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

from actors.agent.chat import ChatTokenizer
from actors.policies.scripted import ScriptedPolicy, replay_each
from protocol.config import EpisodeSettings
from sandbox.tasks.micro import Level, level_of, make_repository
from tiny.expert import NO_NOISE, Noise, script
from tiny.model import build_model, build_tokenizer, save_random_model
from tiny.rollout import play

LOSSES_FILE = "losses.json"
"""Beside the weights: the loss of every step that made them, so that a run of the script can be held against it."""
_IGNORED = -100
_NOISE = Noise(stray=0.35, wrong_change=0.8, give_up=0.02, no_fence=0.01)


class Lesson(Struct, frozen=True, kw_only=True):
    """Some steps of imitation, with an optimizer of their own."""

    steps: int
    lr: float  # after the warm-up it falls linearly to `last_lr`
    last_lr: float
    noise: Noise = NO_NOISE
    difficulties: tuple[int, ...] = (0,)  # each episode's is one of these, all equally likely


class Recipe(Struct, frozen=True, kw_only=True):
    """How the base model is made.

    First from an expert without noise on the first difficulty, until names are copied from where they stand, whatever
    they are; then from one that on both levels often looks in the wrong file and mostly writes something else than was
    asked for. So nearly every episode is well formed, and what is left to learn is where to look and what to write.
    """

    seed: int = 0
    lessons: tuple[Lesson, ...] = (
        Lesson(steps=300, lr=4e-3, last_lr=2.5e-3),
        Lesson(steps=450, lr=2.5e-3, last_lr=2e-4, noise=_NOISE, difficulties=(0, 1)),
    )
    batch: int = 32
    warmup: int = 20
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    tokenizer_episodes: int = 1000
    max_context: int = 1024


class Example(Struct, frozen=True, kw_only=True):
    """One episode as a training sequence; both int64 [tokens]."""

    ids: torch.Tensor
    labels: torch.Tensor  # ids where the expert wrote them, else ignored


def episodes(recipe: Recipe, lesson: Lesson, tokenizer: ChatTokenizer, first: int, count: int) -> list[Example]:
    """Expert episodes number first..first+count-1 of a lesson's endless corpus."""
    settings = EpisodeSettings(max_turns=64, max_turn_tokens=recipe.max_context // 2)
    repositories, texts = [], {}
    for index in range(count):
        r = Random(f"imitate-{recipe.seed}-{first + index}")
        repositories.append(make_repository(r, _level(r.choice(lesson.difficulties)), "train"))
        texts[str(index)] = list(script(r, repositories[-1], lesson.noise))
    policy = ScriptedPolicy(tokenizer, replay_each(texts))
    played = asyncio.run(play(repositories, policy, tokenizer, settings, recipe.max_context))
    examples = []
    for each in played:
        ids = torch.from_numpy(each.episode.history.token_ids).long()
        sampled = torch.from_numpy(each.episode.history.loss_mask).bool()
        examples.append(Example(ids=ids, labels=torch.where(sampled, ids, _IGNORED)))
    return examples


def _level(difficulty: int) -> Level:
    """The difficulty's level; the first asks for every operator, not for sums alone, so that sums are left to learn."""
    level = level_of(difficulty)
    return msgspec.structs.replace(level, families=("operator",)) if difficulty == 0 else level


def make_tokenizer(recipe: Recipe) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 512 tokens, trained on episodes of the corpus."""
    with tempfile.TemporaryDirectory() as folder:
        rough = ChatTokenizer.load(save_random_model(Path(folder)))
        texts = [
            rough.decode(each.ids.numpy())
            for each in episodes(recipe, recipe.lessons[-1], rough, 0, recipe.tokenizer_episodes)
        ]
    return build_tokenizer(texts)


def train(recipe: Recipe, tokenizer: ChatTokenizer) -> Iterator[tuple[Qwen2ForCausalLM, float]]:
    """Yields the model and its loss after each step of the lessons."""
    torch.manual_seed(recipe.seed)
    model = build_model(tokenizer.vocab_size, seed=recipe.seed)
    first = 0
    for lesson in recipe.lessons:
        for loss in _teach(model, recipe, lesson, tokenizer, first):
            yield model, loss
        first += lesson.steps * recipe.batch


def _teach(
    model: Qwen2ForCausalLM, recipe: Recipe, lesson: Lesson, tokenizer: ChatTokenizer, first: int
) -> Iterator[float]:
    """Imitate the corpus from episode `first` on."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=lesson.lr, betas=recipe.betas, weight_decay=recipe.weight_decay
    )
    for step in range(lesson.steps):
        for group in optimizer.param_groups:
            falling = lesson.lr + (lesson.last_lr - lesson.lr) * step / lesson.steps
            group["lr"] = falling * min(1.0, (step + 1) / recipe.warmup)
        batch = episodes(recipe, lesson, tokenizer, first + step * recipe.batch, recipe.batch)
        loss = _loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        yield loss.item()


def _loss(model: Qwen2ForCausalLM, batch: list[Example]) -> torch.Tensor:
    """Mean cross entropy of the tokens that the expert wrote."""
    ids = pad_sequence([each.ids for each in batch], batch_first=True)
    labels = pad_sequence([each.labels for each in batch], batch_first=True, padding_value=_IGNORED)
    hidden = model.model(input_ids=ids[:, :-1]).last_hidden_state  # padding comes last: causal attention needs no mask
    wanted = labels[:, 1:] != _IGNORED
    return F.cross_entropy(model.lm_head(hidden[wanted]), labels[:, 1:][wanted])


def main() -> None:
    """Make the model and say how its training went."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    parser.add_argument("--seed", type=int, default=Recipe().seed)
    options = parser.parse_args()
    torch.set_num_threads(1)
    recipe = Recipe(seed=options.seed)
    tokenizer = make_tokenizer(recipe)
    tokenizer.save_pretrained(options.out)
    num_steps = sum(lesson.steps for lesson in recipe.lessons)
    training = train(recipe, ChatTokenizer.load(options.out))
    models, losses = zip(*track(training, "imitating", total=num_steps), strict=True)
    models[-1].save_pretrained(options.out)
    (options.out / LOSSES_FILE).write_text(json.dumps([round(loss, 4) for loss in losses]) + "\n")


if __name__ == "__main__":
    main()
