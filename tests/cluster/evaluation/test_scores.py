"""The evaluation's statistics against counting by hand."""

import itertools
import math
from statistics import fmean, stdev

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.evaluation.scores import Asked, Attempt, make_report, pass_at_1, pass_at_k, risk_by_coverage, table


def attempt(task: str, run: int, resolved: bool, **more) -> Attempt:
    fields = {"repository": "r", "difficulty": 0, "turns": 4, "tokens": 100, "end_reason": "submitted"} | more
    return Attempt(task_id=task, run=run, resolved=resolved, **fields)


@settings(deadline=None)
@given(outcomes=st.lists(st.booleans(), min_size=1, max_size=8), data=st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_success(outcomes, data):
    k = data.draw(st.integers(1, len(outcomes)))
    by_counting = fmean(any(chosen) for chosen in itertools.combinations(outcomes, k))
    assert pass_at_k(len(outcomes), sum(outcomes), k) == pytest.approx(by_counting)


@pytest.mark.parametrize(("n", "c", "k"), [(3, 1, 4), (3, 4, 1), (3, 1, 0)])
def test_pass_at_k_refuses_what_cannot_be(n, c, k):
    with pytest.raises(ValueError, match="expected 1 <= k"):
        pass_at_k(n, c, k)


def test_pass_at_1_is_the_mean_over_runs_with_its_error():
    attempts = [attempt(t, run, (t, run) in {("a", 0), ("b", 0), ("a", 1)}) for t in "ab" for run in range(3)]
    estimate = pass_at_1(attempts)  # shares 1, 1/2, 0
    assert estimate.mean == pytest.approx(0.5)
    assert estimate.se == pytest.approx(0.5 / math.sqrt(3))
    assert pass_at_1([attempt(str(i), 0, i < 1) for i in range(4)]).se == pytest.approx(math.sqrt(0.25 * 0.75 / 4))


def test_a_report_splits_by_repository_and_difficulty_and_omits_what_cannot_be_estimated():
    attempts = [
        attempt("a", 0, True, repository="x", turns=2),
        attempt("a", 1, True, repository="x", turns=4),
        attempt("b", 0, False, repository="y", difficulty=1, end_reason="max_turns"),
    ]
    report = make_report(attempts)
    assert (report.num_tasks, report.num_runs) == (2, 2)
    assert report.pass_at_k == {1: 0.5, 2: 1.0}
    assert report.pass_at_k_tasks == {1: 2, 2: 1}, "task b has one attempt: its pass@2 is of task a alone"
    assert {name: e.mean for name, e in report.by_repository.items()} == {"x": 1.0, "y": 0.0}
    assert {level: e.mean for level, e in report.by_difficulty.items()} == {0: 1.0, 1: 0.0}
    assert report.end_reasons == {"submitted": 2, "max_turns": 1}
    assert report.turns == pytest.approx(10 / 3)
    with pytest.raises(ValueError, match="at least one"):
        make_report([])


def test_confidence_that_tells_lowers_the_risk_of_the_confident():
    resolved = [True, True, False, False]
    assert risk_by_coverage([4, 3, 2, 1], resolved) == pytest.approx([0, 0, 1 / 3, 1 / 2])
    assert risk_by_coverage([1, 2, 3, 4], resolved) == pytest.approx([1, 1, 2 / 3, 1 / 2])
    assert risk_by_coverage([0, 0, 0, 0], resolved) == pytest.approx([1 / 2] * 4), "ties say nothing, in any order"


@settings(deadline=None)
@given(pairs=st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=12), data=st.data())
def test_risk_does_not_depend_on_the_order_and_ends_at_the_failure_rate(pairs, data):
    shuffled = data.draw(st.permutations(pairs))
    risks = risk_by_coverage(*zip(*pairs, strict=True))
    assert np.allclose(risks, risk_by_coverage(*zip(*shuffled, strict=True)))
    assert risks[-1] == pytest.approx(fmean(not resolved for _, resolved in pairs))


def test_the_table_has_a_row_a_model_and_says_nothing_where_nothing_is_known():
    one = make_report([attempt("a", 0, True), attempt("b", 0, False)])
    two = make_report([attempt(t, run, run == 0) for t in "ab" for run in range(2)])
    lines = table({"base": one, "ours": two}).splitlines()
    assert (
        lines[0] == "| model | tasks | runs | pass@1 | 95% over tasks | pass@1 of all asked | pass@2 | turns | tokens |"
    )
    assert lines[2] == "| base | 2 of 2 | 1 | 50.0 ± 35.4 | 0.0 to 100.0 | 50.0 |  | 4.0 | 100 |"
    assert lines[3] == "| ours | 2 of 2 | 2 | 50.0 ± 50.0 | 50.0 to 50.0 | 50.0 | 100.0 | 4.0 | 100 |"


def test_what_was_not_scored_is_said() -> None:
    attempts = [attempt("a", 0, True), attempt("a", 1, True), attempt("b", 0, False)]
    asked = Asked(tasks=("a", "b", "c"), num_runs=2, reasons={"c": "its image is gone"})
    report = make_report(attempts, asked=asked)
    assert (report.num_tasks, report.num_tasks_asked) == (2, 3)
    assert (report.num_attempts, report.num_attempts_asked) == (3, 6)
    assert report.not_scored == {"its image is gone": 2, "no episode of it ended": 1}
    assert report.tasks_not_scored == ("c",)
    assert report.pass_at_1_of_all == pytest.approx(2 / 6)
    assert (report.pass_at_k[2], report.pass_at_k_tasks[2]) == (1.0, 1)  # of the one task that has two attempts
    assert "100.0 (1 of 3 tasks)" in table({"m": report})
    assert "2 of 3" in table({"m": report})


def test_the_bootstrap_is_over_tasks() -> None:
    # many runs of two tasks tell much of the two, and little of tasks in general
    attempts = [attempt(task, run, task == "a") for task in "ab" for run in range(50)]
    report = make_report(attempts)
    assert report.pass_at_1.se == 0.0
    assert report.interval == (0.0, 1.0)
    sure = make_report([attempt("a", run, True) for run in range(3)])
    assert sure.interval == (1.0, 1.0)


def test_a_run_that_ended_early_weighs_by_what_it_scored() -> None:
    attempts = [attempt(str(task), 0, task < 20) for task in range(100)] + [attempt("0", 1, True)]
    report = make_report(attempts, asked=Asked(tasks=tuple(map(str, range(100))), num_runs=2))
    assert report.pass_at_1.mean == pytest.approx(0.2)  # and not the mean of a whole run's 0.2 and of one attempt's 1.0
    assert report.pass_at_1.mean == report.pass_at_k[1]
    assert report.interval[0] < report.pass_at_1.mean < report.interval[1]
    assert 0 < report.pass_at_1.se < 0.1


@settings(deadline=None)
@given(outcomes=st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=2, max_size=5))
def test_where_every_run_is_whole_the_error_is_that_of_the_mean_over_runs(outcomes: list[list[bool]]) -> None:
    estimate = pass_at_1([attempt(str(t), r, done) for r, run in enumerate(outcomes) for t, done in enumerate(run)])
    shares = [fmean(run) for run in outcomes]
    assert estimate.mean == pytest.approx(fmean(shares))
    assert estimate.se == pytest.approx(stdev(shares) / math.sqrt(len(shares)), abs=1e-9)
