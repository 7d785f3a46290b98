"""Every zero has its reason; one that nothing explains has none."""

import pytest

from actors.episodes.zeros import zero_reason
from sandbox.judgement.grading import Patch, Verdict
from sandbox.patches import Change

CHANGE = Patch(changes=(Change(path="a.py", kind="file", content=b"x"),), diff="")
NOTHING = Patch(changes=(), diff="")


@pytest.mark.parametrize(
    ("verdict", "patch", "reason"),
    [
        (Verdict(resolved=True, reason="all 2 tests pass"), CHANGE, ""),
        (Verdict(resolved=False, reason="the agent changed nothing"), NOTHING, "unchanged"),
        (Verdict(resolved=False, reason="1 of 2 tests fail, first a", failed=("a",)), CHANGE, "tests"),
        (Verdict(resolved=False, reason="2 tests differ, first a", failed=("a",)), CHANGE, "tests"),
        (Verdict(resolved=False, reason="no test could be collected", failed=("a",)), CHANGE, "not_run"),
        (Verdict(resolved=False, reason="the tests did not end in time", failed=("a",)), CHANGE, "time"),
        (Verdict(resolved=False, reason="forged", tampered=True), CHANGE, "tampered"),
        (Verdict(resolved=False, reason=""), CHANGE, ""),
    ],
)
def test_a_verdict_gives_the_reason(verdict, patch, reason):
    assert zero_reason(verdict, patch) == reason
