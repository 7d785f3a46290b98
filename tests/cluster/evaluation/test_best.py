"""The best checkpoint by held-out scores: which one it is, that its link is whole, and that nothing removes it."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.evaluation.best import BestCheckpoint, behind_link, best_checkpoint
from cluster.inputs import with_whole_paths
from cluster.reporting.summary import print_summary, summarise
from cluster.run_files import choose_directory, complete_checkpoints
from learner.held_out import Evaluation, HeldOut, Scored, expendable, nearest
from protocol.config import Settings
from protocol.errors import ConfigError


def checkpoint(run_dir: Path, step: int) -> Path:
    path = run_dir / "checkpoints" / f"step-{step}"
    (path / "hf").mkdir(parents=True)
    (path / "checkpoint.json").write_text("{}")
    return path


def evaluated(run_dir: Path, version: int, of_all: float, mean: float | None = None) -> Path:
    path = run_dir / "evaluations" / f"version-{version}" / "evaluation.json"
    path.parent.mkdir(parents=True)
    score = None if mean is not None and mean < 0 else {"mean": of_all if mean is None else mean, "se": 0.1}
    path.write_text(json.dumps({"version": version, "pass_at_1": score, "pass_at_1_of_all": of_all}))
    return path


def test_the_link_leads_to_the_checkpoint_nearest_the_best_version_and_moves_with_it(tmp_path):
    best = BestCheckpoint(tmp_path)
    best.heed(evaluated(tmp_path, 0, 0.9))
    assert best.point() is None, "the model that the run began from has no checkpoint"
    best.heed(evaluated(tmp_path, 11, 0.5))
    assert best.point() is None, "nothing is saved yet"
    for step in (5, 10, 20):
        checkpoint(tmp_path, step)
    moved = best.point()
    assert moved and (moved.step, moved.version, moved.pass_at_1) == (10, 11, 0.5)
    assert (tmp_path / "checkpoints" / "best" / "hf").is_dir()
    assert best.point() is None, "once is enough"
    best.heed(evaluated(tmp_path, 15, 0.5))
    assert best.point() is None, "of equal ones the first stays"
    best.heed(evaluated(tmp_path, 19, 0.6))
    moved = best.point()
    assert moved == best_checkpoint(tmp_path) and moved and moved.step == 20
    assert sorted(complete_checkpoints(tmp_path)) == [5, 10, 20], "the link is no checkpoint of its own"


def test_a_later_life_of_the_run_goes_on_from_what_is_on_disk(tmp_path):
    evaluated(tmp_path, 10, 0.7)
    evaluated(tmp_path, 20, 0.4)
    checkpoint(tmp_path, 10), checkpoint(tmp_path, 20)
    moved = BestCheckpoint(tmp_path).point()
    assert moved and moved.step == 10
    again = BestCheckpoint(tmp_path)
    again.heed(evaluated(tmp_path, 30, 0.6))
    assert again.point() is None and best_checkpoint(tmp_path) == moved


def test_an_outage_makes_no_best_and_damaged_files_do_no_harm(tmp_path):
    evaluated(tmp_path, 10, of_all=0.4)
    evaluated(tmp_path, 20, of_all=0.1, mean=1.0)  # two of twenty were scored
    evaluated(tmp_path, 30, of_all=0.0, mean=-1)  # none was
    for name, content in (("version-40", "{"), ("version-50", "[]"), ("version-60", '{"version": 60}')):
        (tmp_path / "evaluations" / name).mkdir()
        (tmp_path / "evaluations" / name / "evaluation.json").write_text(content)
    checkpoint(tmp_path, 10), checkpoint(tmp_path, 20)
    moved = BestCheckpoint(tmp_path).point()
    assert moved and moved.step == 10
    (tmp_path / "checkpoints" / "best" / "held_out.json").write_text("{")
    assert best_checkpoint(tmp_path) is None
    assert BestCheckpoint(tmp_path).point() == moved, "it is written anew"
    (tmp_path / "checkpoints" / "step-10" / "checkpoint.json").unlink()
    assert best_checkpoint(tmp_path) is None, "the link leads to nothing whole"


@given(st.lists(st.tuples(st.integers(1, 40), st.floats(0, 1)), max_size=8), st.integers(1, 3), st.integers(0, 3))
def test_whatever_becomes_the_best_is_still_there(evaluations, keep, lag):
    """Checkpoints at every version; evaluations end, one after another, some time after they began."""
    state, steps = HeldOut(), set()
    begins = dict(sorted(dict(evaluations).items()))
    for version in range(1, 41):
        steps.add(version)
        served = max(0, version - min(lag, keep - 1))
        if state.current is None and served in begins and served not in state.evaluations:
            state.begin(served)
        elif state.current is not None and version % 5 == 0:
            current = state.current
            resolved = int(begins[current.version] * 10)
            current.attempts = [scored(f"t{i}", i < resolved) for i in range(10)]
            current.is_over = True
        steps -= set(expendable(steps, keep, state.wanted(served)))
        over = [each for each in state.evaluations.values() if each.is_over]
        best = max(over, key=lambda each: (each.num_resolved, -each.version), default=None)
        assert best is None or best.version in steps
        assert len(steps) <= keep + 3
    assert set(range(41 - keep, 41)) <= steps


def scored(task: str, resolved: bool) -> Scored:
    return Scored(
        task_id=task,
        run=0,
        resolved=resolved,
        num_turns=1,
        num_tokens=1,
        end_reason="submitted",
        mean_logprob=-1.0,
        oldest_version=0,
        newest_version=0,
    )


def test_wanted_are_the_best_the_one_under_way_and_the_next():
    state = HeldOut(evaluations={0: Evaluation(version=0, attempts=[scored("a", True)], is_over=True)})
    assert state.wanted(3) == (3,), "version 0 needs no checkpoint"
    state.evaluations[5] = Evaluation(version=5, attempts=[scored("a", False)], is_over=True)
    state.evaluations[9] = Evaluation(version=9, attempts=[scored("a", True)])
    assert state.wanted(12) == (5, 9, 12)
    assert (nearest([], 3), nearest([2, 4], 3), nearest([2, 4], 9)) == (None, 2, 4)


def test_a_path_through_the_link_is_pinned_to_what_it_means_now(tmp_path):
    checkpoint(tmp_path, 10), evaluated(tmp_path, 10, 0.5)
    BestCheckpoint(tmp_path).point()
    model = tmp_path / "checkpoints" / "best" / "hf"
    settings = Settings(model={"path": str(model)}, resume=str(model.parent))
    whole = with_whole_paths(settings)
    assert whole.model.path == str(tmp_path / "checkpoints" / "step-10" / "hf")
    assert whole.resume == str(tmp_path / "checkpoints" / "step-10")
    assert behind_link(tmp_path / "best" / "hf") == tmp_path / "best" / "hf"


def test_a_forgotten_checkpoint_is_resumed_elsewhere(tmp_path):
    for step in (10, 20, 30):
        checkpoint(tmp_path, step)
    settings = Settings(run_dir=tmp_path, resume=str(tmp_path / "checkpoints" / "step-10"))
    with pytest.raises(ConfigError, match="went on to step 30 and no longer has the batches since"):
        choose_directory(settings)
    assert choose_directory(settings.model_copy(update={"resume": str(tmp_path / "checkpoints" / "step-20")}))
    assert choose_directory(settings.model_copy(update={"run_dir": tmp_path / "other"}))


def test_it_needs_evaluations_and_the_summary_names_it(tmp_path, capsys):
    with pytest.raises(ValueError, match=r"set eval\.every"):
        Settings(checkpoint={"keep_best": True})
    checkpoint(tmp_path, 10), evaluated(tmp_path, 10, 0.25)
    best = BestCheckpoint(tmp_path).point()
    figures = summarise([([], {})], 1.0, [(0, 0.5), (10, 0.25)], best)
    assert figures["best_checkpoint_step"] == 10
    print_summary(figures, tmp_path, None, best)
    shown = capsys.readouterr().out
    assert f"{tmp_path}/checkpoints/step-10 (pass@1 25.0 on held-out tasks at version 10; the model" in shown
