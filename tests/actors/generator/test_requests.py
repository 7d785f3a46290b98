import logging

import pytest

from actors.generator.requests import FilterWarnings
from protocol.messages import Sampling


def test_sampling_from_the_policy_itself_is_no_matter_of_warning(caplog):
    with caplog.at_level(logging.WARNING):
        for temperature in (0.0, 0.7, 1.0):
            FilterWarnings().look_at(Sampling(temperature=temperature, max_tokens=3, seed=1))
    assert not caplog.records


@pytest.mark.parametrize("filters", [{"top_p": 0.9}, {"top_k": 40}, {"min_p": 0.1}, {"top_p": 0.5, "top_k": 3}])
def test_every_filter_is_warned_of_once(caplog, filters):
    warnings = FilterWarnings()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            warnings.look_at(Sampling(**filters))
    assert [r.getMessage().split(":")[0] for r in caplog.records] == [f"{n}={v}" for n, v in filters.items()]
    assert all("not those of the policy" in r.getMessage() for r in caplog.records)
