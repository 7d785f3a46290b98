"""The script that makes the base model repeats itself; the model in the repository is what it says."""

import itertools
import json
from pathlib import Path

import msgspec
import pytest
import torch

from actors.agent.chat import ChatTokenizer
from tiny.evaluate import evaluate, summarize
from tiny.imitate import LOSSES_FILE, Lesson, Recipe, episodes, make_tokenizer, train
from tiny.model import save_random_model

ASSETS = Path(__file__).parents[2] / "assets" / "tiny"
SHORT = Recipe(batch=4, tokenizer_episodes=40)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return ChatTokenizer.load(save_random_model(tmp_path_factory.mktemp("model")))


def weights_after(recipe: Recipe, tokenizer: ChatTokenizer, steps: int) -> list[torch.Tensor]:
    *_, (model, _) = itertools.islice(train(recipe, tokenizer), steps)
    return [parameter.detach().clone() for parameter in model.parameters()]


def test_a_prefix_of_the_recipe_repeats_itself_exactly(tokenizer):
    first, second = (weights_after(SHORT, tokenizer, 3) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    other = weights_after(msgspec.structs.replace(SHORT, seed=1), tokenizer, 3)
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_only_what_the_expert_wrote_is_learned(tokenizer):
    for example in episodes(SHORT, Lesson(steps=1, lr=0.0, last_lr=0.0), tokenizer, 0, 5):
        learned = example.labels >= 0
        assert torch.equal(example.ids[learned], example.labels[learned])
        text = tokenizer.decode(example.ids[learned].numpy(), keep_special=True)
        assert text.endswith("submit\n```<|im_end|>") and "must return" not in text


def test_training_lowers_the_loss(tokenizer):
    recipe = msgspec.structs.replace(SHORT, batch=8, warmup=2)
    losses = [loss for _, loss in itertools.islice(train(recipe, tokenizer), 12)]
    assert losses[-1] < losses[0] - 1.0


def test_the_script_gives_the_tokenizer_of_the_repository_again():
    made = make_tokenizer(Recipe())
    assert made.backend_tokenizer.to_str() == _tokenizer_of_assets().to_str()


def test_the_script_goes_the_way_that_made_the_weights_of_the_repository():
    recorded = json.loads((ASSETS / LOSSES_FILE).read_text())
    assert len(recorded) == sum(lesson.steps for lesson in Recipe().lessons)
    training = train(Recipe(), ChatTokenizer.load(ASSETS))
    again = [loss for _, loss in itertools.islice(training, 8)]
    assert again == pytest.approx(recorded[:8], abs=2e-3)  # another CPU adds up in another order


@pytest.mark.remake
@pytest.mark.timeout(1800)
def test_the_script_gives_the_weights_of_the_repository_again():
    """Another CPU rounds in another way, so the weights are held to what they do."""
    *_, (model, loss) = train(Recipe(), ChatTokenizer.load(ASSETS))
    assert loss == pytest.approx(json.loads((ASSETS / LOSSES_FILE).read_text())[-1], abs=0.1)
    score = summarize(evaluate(model.eval(), ChatTokenizer.load(ASSETS), count=192))
    assert 0.05 <= score.pass_rate <= 0.2, score


def _tokenizer_of_assets():
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(ASSETS / "tokenizer.json"))
