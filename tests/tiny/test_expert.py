"""The scripted expert solves every level without noise, and errs as told with it."""

import re
from collections import Counter
from random import Random

import pytest

from actors.agent.chat import ChatTokenizer
from actors.policies.scripted import ScriptedPolicy, replay_each
from protocol.config import EpisodeSettings
from sandbox.tasks.micro import level_of, make_repository
from tiny.expert import NO_NOISE, Noise, corrupt, script
from tiny.model import save_random_model
from tiny.rollout import play

SEEN = ["nal", "dex"]
SETTINGS = EpisodeSettings(max_turns=64, max_turn_tokens=512)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return ChatTokenizer.load(save_random_model(tmp_path_factory.mktemp("model")))


async def play_scripts(tokenizer, difficulty: int, noise: Noise, count: int):
    repositories = [make_repository(Random(i), level_of(difficulty), "train") for i in range(count)]
    texts = {str(i): list(script(Random(i), repository, noise)) for i, repository in enumerate(repositories)}
    return await play(repositories, ScriptedPolicy(tokenizer, replay_each(texts)), tokenizer, SETTINGS, 1 << 14)


@pytest.mark.parametrize("difficulty", [0, 1, 2, 3, 5])
async def test_without_noise_every_task_is_solved_through_the_real_tools(tokenizer, difficulty):
    played = await play_scripts(tokenizer, difficulty, NO_NOISE, 30)
    assert all(each.solved for each in played)
    assert {each.episode.end_reason for each in played} == {"submitted"}


async def test_noise_solves_some_and_every_error_occurs(tokenizer):
    noise = Noise(stray=0.3, wrong_change=0.5, give_up=0.1, no_fence=0.1)
    played = await play_scripts(tokenizer, 0, noise, 200)
    assert 20 < sum(each.solved for each in played) < 100
    first = Counter(each.episode.steps[0].text.removeprefix("```command\n").split()[0] for each in played)
    assert first["ls"] > 20 and first["search_dir"] > 80 and first["submit"] > 5
    assert any(step.format_error for each in played for step in each.episode.steps)


def test_a_script_is_the_same_again():
    repository = make_repository(Random(0), level_of(1), "train")
    assert list(script(Random(5), repository, Noise())) == list(script(Random(5), repository, Noise()))


@pytest.mark.parametrize(
    ("line", "pattern"),
    [
        ("    return a + b", "a [-*%/]+ b"),
        ("    return a <= b", "a [<>=]+ b"),
        ("    return a[-1]", r"a\[-[02-9]\]"),
        ("    return pow(a, b)", r"pow\(([bmnxy], b|a, [amnxy])\)"),
        ("from nal import tok", "from nal import tok"),
        ('    return "tok"', 'return "(nal|dex)"'),
    ],
)
def test_corrupting_exchanges_one_thing(line, pattern):
    for seed in range(20):
        changed = corrupt(Random(seed), line, SEEN)
        assert changed.strip() != line.strip() or pattern == line

        assert re.search(pattern, changed), changed
