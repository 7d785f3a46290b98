"""How far what is trained on is from what was dispatched."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.replay.survivorship import Survivorship, quantile_shares, size_class, total_variation
from protocol.messages import TaskRef
from tiny.trajectories import finished_member


def finished(duration_s, num_tokens):
    return finished_member(duration_s=duration_s, num_tokens=num_tokens)


def test_total_variation():
    assert total_variation({"a": 1, "b": 1}, {"a": 5, "b": 5}) == 0
    assert total_variation({"a": 1}, {"b": 9}) == 1
    assert total_variation({"a": 1, "b": 1}, {"a": 1}) == 0.5
    assert total_variation({}, {"a": 1}) == 0


def test_quantile_shares_say_which_sizes_were_lost():
    finished = {str(size): 10 for size in range(8)}
    assert quantile_shares(finished, finished) == pytest.approx([0.25] * 4)
    assert quantile_shares(finished, {"0": 5, "1": 5}) == pytest.approx([1, 0, 0, 0])
    assert quantile_shares(finished, {"7": 1}) == pytest.approx([0, 0, 0, 1])
    assert quantile_shares({"5": 12}, {"5": 3}) == pytest.approx([0.25] * 4), "one size: nothing to be biased by"
    assert quantile_shares(finished, {}) == []


@given(st.lists(st.floats(1, 1e6), min_size=1, max_size=60), st.data())
def test_quantile_shares_agree_with_sorting(sizes, data):
    """Against the slow way: sort what finished, cut it into four, count what was trained of each part."""
    sizes = sorted(set(map(int, sizes)))
    sizes = sizes[: len(sizes) // 4 * 4]
    distinct = [size for i, size in enumerate(sizes) if i == 0 or size_class(size) != size_class(sizes[i - 1])]
    distinct = distinct[: len(distinct) // 4 * 4]
    if not distinct:
        return
    kept = data.draw(st.lists(st.sampled_from(distinct), min_size=1, unique=True))
    quarter = len(distinct) // 4
    expected = [sum(size in kept for size in distinct[i * quarter : (i + 1) * quarter]) / len(kept) for i in range(4)]
    finished = {size_class(size): 1 for size in distinct}
    assert quantile_shares(finished, {size_class(size): 1 for size in kept}) == pytest.approx(expected)


def test_a_bias_toward_short_episodes_is_seen():
    task = TaskRef(task_id="t", source="micro", repository="r")
    seen = Survivorship()
    seen.dispatch(task, 40)
    for i in range(40):
        seen.finish(task, finished(duration_s=10.0 + 30 * i, num_tokens=1000))
        if i < 20:
            seen.train(task, finished(duration_s=10.0 + 30 * i, num_tokens=1000))
    metrics = seen.metrics()
    assert metrics["survivorship_duration_distance"] == pytest.approx(0.5, abs=0.03)
    assert metrics["survivorship_duration_q4_share"] == 0
    assert metrics["survivorship_length_distance"] == pytest.approx(0)
    assert metrics["survivorship_source_distance"] == 0
    assert (metrics["dispatched.micro"], metrics["finished.micro"], metrics["trained.micro"]) == (40, 40, 20)
