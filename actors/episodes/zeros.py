"""Why an episode has no reward, in one word: a zero without a reason would be a failure of the machinery."""

from __future__ import annotations

import re

from protocol.messages import ZeroReason
from sandbox.judgement.verdicts import Verdict
from sandbox.patches import Patch, problem_of

_TESTS = re.compile(r"\d+ (of \d+ tests fail|tests differ)\b|swebench's grader says no")


def zero_reason(verdict: Verdict, patch: Patch) -> ZeroReason:
    """What the verdict rests on; empty for a reward, and for a zero that nothing explains."""
    if verdict.resolved:
        return ""
    if verdict.tampered:
        return "tampered"
    if not patch.changes and not patch.problem:
        return "unchanged"
    if problem_of(patch) or "does not fit the tree" in verdict.reason:
        return "patch"
    if _TESTS.match(verdict.reason):
        return "tests"
    if "did not end in time" in verdict.reason:
        return "time"
    return "not_run" if verdict.failed else ""
