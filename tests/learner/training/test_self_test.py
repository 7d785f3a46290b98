"""The self-test at the start of a run, in real ranks: exact families pass in every layout, a noisy one is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.learner.training.test_parity import run_ranks
from tiny.families import save_random_family

pytestmark = [pytest.mark.deepspeed, pytest.mark.slow, pytest.mark.timeout(600)]

EXACT = ["qwen2", "gemma2", "gpt_oss"]  # plain; capped and windowed; sinks, which Ulysses splits by heads
NOISY = "phimoe"
LAYOUTS = [(1, 1), (2, 2)]
STAGES = (0, 3)


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float | str]:
    """What the self-test says, by family, layout and ZeRO stage."""
    folder = tmp_path_factory.mktemp("self_test")
    models = {name: save_random_family(folder / name, name) for name in [*EXACT, NOISY]}

    def case(name: str, ranks: int, stage: int, dtype: str = "float32") -> dict:
        learner = {"zero_stage": stage, "sequence_parallel": ranks, "logprob_chunk": 40}
        model = {"path": str(models[name]), "max_context": 128, "dtype": dtype}
        settings = {"model": model, "episode": {"max_turn_tokens": 32}, "learner": learner}
        return {"name": f"{name}-{ranks}-{stage}-{dtype}", "settings": settings, "self_test": True}

    job = [
        {
            "world": world,
            "sequence_parallel": ranks,
            "cases": [
                *(case(name, ranks, stage) for name in EXACT for stage in STAGES),
                case("qwen2", ranks, 2, "bfloat16"),
                case(NOISY, ranks, 0),
            ],
        }
        for world, ranks in LAYOUTS
    ]
    (folder / "job.json").write_text(json.dumps(job))
    run_ranks(folder / "job.json")
    return {path.stem: json.loads(path.read_text()) for path in Path(folder).glob("*-*.json")}


@pytest.mark.parametrize("ranks", [ranks for _, ranks in LAYOUTS])
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", EXACT)
def test_an_exact_family_passes(said: dict[str, float | str], name: str, stage: int, ranks: int) -> None:
    difference = said[f"{name}-{ranks}-{stage}-float32"]
    assert isinstance(difference, float), difference
    assert difference < 1e-5


@pytest.mark.parametrize("ranks", [ranks for _, ranks in LAYOUTS])
def test_lower_precision_is_allowed_its_own_rounding(said: dict[str, float | str], ranks: int) -> None:
    difference = said[f"qwen2-{ranks}-2-bfloat16"]
    assert isinstance(difference, float), difference
    assert 0 < difference < 0.05


@pytest.mark.parametrize("ranks", [ranks for _, ranks in LAYOUTS])
def test_what_trains_wrongly_is_refused_with_likely_causes(said: dict[str, float | str], ranks: int) -> None:
    line = said[f"{NOISY}-{ranks}-0-float32"]
    assert isinstance(line, str), f"a difference of {line} was let through"
    assert "refused before training" in line and "router jitter" in line
