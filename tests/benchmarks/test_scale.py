"""The arithmetic of many hosts."""

import pytest

from benchmarks import scale


def test_the_first_to_be_full_is_the_journal_and_the_docs_say_when():
    measured = {"submissions_per_s": 100.0, "leases_per_s": 10_000.0}
    one = scale.load(1, measured)
    mean_s = 300 * 2.718281828459045 ** (0.8**2 / 2)
    assert one["journal"] == pytest.approx(62 / mean_s / 100)
    assert one["leases_and_beats"] == pytest.approx((62 / mean_s + 16 / 20) / 10_000)
    assert scale.load(500, measured) == {name: pytest.approx(500 * share) for name, share in one.items()}
    page = (scale._RESULTS.parents[1] / "docs" / "40-own-cluster.md").read_text()
    saved = scale.saved("replay")
    for hosts in scale.HOSTS:
        row = f"| {hosts:,} | {hosts * scale.EPISODES_A_HOST:,} | {scale.load(hosts, saved)['journal']:.0%} |"
        assert row in page, row
