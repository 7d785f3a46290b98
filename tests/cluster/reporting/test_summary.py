import io
import math

import pytest

from benchmarks.console.made_run import make_run
from cluster.reporting.progress import LineProgress, LiveProgress
from cluster.reporting.screen import describe_step, remaining_s, sparkline
from cluster.reporting.summary import print_summary, summarise
from cluster.reporting.top import main as top


def records(num_steps):
    return [
        {"step": i + 1, "reward_mean": i / num_steps, "loss": 0.1, "tokens": 100.0, "step_s": 1.0, "wait_s": 3.0}
        for i in range(num_steps)
    ]


def test_the_summary_compares_the_first_fifth_with_the_last():
    figures = summarise([(records(10), {"actors.episodes_finished": 50.0, "generator.generated_tokens": 1000.0})], 20.0)
    assert figures["reward_first"] == pytest.approx(0.05)
    assert figures["reward_last"] == pytest.approx(0.85)
    assert figures["episodes_per_s"] == 2.5
    assert figures["generated_tok_s"] == 50.0
    assert figures["learner_tok_s"] == 100.0
    assert figures["learner_wait_share"] == 0.75


def test_a_run_of_two_lives_counts_a_step_once_and_every_episode():
    first = records(6), {"actors.episodes_finished": 30.0}
    second = records(9)[4:], {"actors.episodes_finished": 20.0}
    figures = summarise([first, second], 10.0)
    assert figures["steps"] == 9
    assert figures["episodes"] == 50
    assert figures["reward_last"] == pytest.approx(8 / 9)


def test_a_batch_that_trained_nothing_is_no_step():
    some = records(4)
    some[2] = {**some[2], "skipped_batches": 1.0}
    figures = summarise([(some, {})], 10.0)
    assert (figures["steps"], figures["skipped_batches"]) == (3, 1)
    assert "skipped_batches" not in summarise([(records(4), {})], 10.0)


def test_a_run_without_steps_has_a_summary():
    figures = summarise([([], {})], 3.0)
    assert figures["steps"] == 0
    assert "reward_first" not in figures


def test_the_summary_shows_where_the_results_lie(capsys):
    print_summary(summarise([(records(3), {})], 5.0), "runs/x", "runs/x/checkpoints/step-3")
    shown = capsys.readouterr().out
    assert "optimizer steps" in shown
    assert "runs/x/checkpoints/step-3" in shown


def test_plain_progress_is_one_line_a_step(capsys):
    with LineProgress(4) as progress:
        progress.note("ready")
        progress.step({"step": 2, "reward_mean": 0.5, "loss_mean": 0.25})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("ready")
    assert lines[1].endswith("step 2/4  reward 0.5  loss 0.25")


def test_the_live_screen_shows_steps_system_and_notes():
    from rich.console import Console

    console = Console(width=100, height=30, force_terminal=True, record=True, file=io.StringIO())
    with LiveProgress(4, "run", console) as progress:
        progress.note("generator-0 is ready")
        progress.warn("Entropy fell")
        progress.step({"step": 2, "reward_mean": 0.5, "loss_mean": 0.25})
        progress.sample({"replay.version": 2.0, "actors.episodes_executing": 12.0}, "learner-1 (stalled)")
        console.print(progress._render())
    shown = console.export_text()
    for text in (
        "step 2/4",
        "reward",
        "generator-0 is ready",
        "Entropy fell",
        "learner-1 (stalled)",
        "12 executing",
        "version 2",
    ):
        assert text in shown


def test_a_sparkline_scales_between_its_own_ends():
    assert sparkline([0.0, 0.5, 1.0]) == "▁▅█ 1.00"
    assert sparkline([math.nan]) == ""
    assert describe_step({"step": 1, "tokens": 12000.0}) == "tokens 12000"


def test_the_rest_is_estimated_from_the_last_steps():
    steps = [{"step": n, "wait_s": 100.0 if n < 5 else 1.0, "step_s": 2.0} for n in range(1, 21)]
    assert remaining_s(50, steps) == 30 * 3.0
    assert remaining_s(20, steps) == 0
    assert remaining_s(20, []) is None


def test_top_shows_a_run_of_another_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    run = make_run(tmp_path / "run [b]", 8, num_steps=40, is_over=False)
    assert top([str(run), "--once"]) == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for words in ("run [b]", "step 40/40", "generators ◀ slowest", "The learner waits for the generators"):
        assert words in shown
    assert "Entropy fell from" in shown  # what a watcher saw
    assert top([str(tmp_path)]) == 2
    assert "expected a run directory" in capsys.readouterr().err
