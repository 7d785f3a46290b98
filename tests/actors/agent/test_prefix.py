import numpy as np
import pytest

from actors.agent.prefix import Prefix
from actors.policy import Sampled


@pytest.mark.parametrize(
    ("num_cached", "versions", "reused"),
    [
        (0, [3, 3], None),
        (16, [3, 3], 3),
        (16, [4, 4], 3),
        (0, [4, 4], 3),  # the weights may have changed after the first piece of the prompt
        (0, [3, 4], None),  # in the middle of the turn: its own stamps say so
        (0, [], None),
    ],
)
def test_a_turn_says_whose_keys_and_values_may_lie_behind_it(
    num_cached: int, versions: list[int], reused: int | None
) -> None:
    sampled = Sampled(
        token_ids=np.arange(len(versions), dtype=np.int32),
        logprobs=np.zeros(len(versions), np.float32),
        versions=np.array(versions, np.int32),
        finish_reason="stop",
        num_cached_tokens=num_cached,
    )
    assert Prefix("episode", 3, None).reused(sampled) == reused
