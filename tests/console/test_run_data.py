"""The index, its questions, metrics as they grow, an episode as a story; files are hostile and half written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from console.episodes.story import first_difference, take_apart, tell
from console.plots.figures import draw
from console.run_data import fleet, queries
from console.run_data.held_out import held_out
from console.run_data.index import FILE_NAME, Index
from console.run_data.metrics import Metrics
from console.run_data.queries import Filter, match_of
from console.run_data.records import read_record
from console.run_data.run import Run, bottleneck
from protocol.errors import ConfigError


@pytest.fixture
def run_dir(made_run: Path, tmp_path: Path) -> Path:
    """A copy that may be changed, without the index that another test may have left in the shared run."""
    return Path(shutil.copytree(made_run, tmp_path / "copy", ignore=shutil.ignore_patterns(f"{FILE_NAME}*")))


def found(index: Index, **chosen: object) -> list[str]:
    with index.connect() as db:
        return [row["episode"] for row in queries.episodes(db, Filter(**chosen)).rows]  # type: ignore[arg-type]


def test_every_whole_line_is_indexed_once_and_what_is_none_is_counted(run_dir: Path) -> None:
    index = Index(run_dir)
    progress = index.update()
    assert progress.unreadable == 3
    with index.connect() as db:
        assert queries.episodes(db, Filter()).num_all == 240 + 8
    assert index.update() == progress
    with (run_dir / "trajectories" / "sandbox-actor-1.jsonl").open("ab") as file:  # the torn line goes on
        file.write(b'ages": []}\n')
    index.update()
    assert found(index, q="torn") == ["torn"]


def test_a_second_index_goes_on_where_the_first_was_and_damage_is_made_anew(run_dir: Path) -> None:
    Index(run_dir).update()
    assert not Index(run_dir).read_on()
    (run_dir / FILE_NAME).write_bytes(b"no database" * 100)
    index = Index(run_dir)
    index.update()
    assert len(found(index)) == queries.PAGE


def test_a_file_that_was_replaced_is_read_anew(run_dir: Path) -> None:
    index = Index(run_dir)
    index.update()
    path = run_dir / "trajectories" / "sandbox-actor-0.jsonl"
    path.write_bytes(path.read_bytes().split(b"\n")[0] + b"\n")
    index.update()
    with index.connect() as db:
        assert queries.episodes(db, Filter()).num_all == 1 + 8


def test_filters_agree_with_a_slow_reading_of_the_files(run_dir: Path) -> None:
    index = Index(run_dir)
    index.update()
    files = [run_dir / "trajectories" / f"sandbox-actor-{number}.jsonl" for number in (0, 2)]
    lines = [line for path in files for line in path.read_bytes().splitlines()]
    records = [record for line in lines if (record := read_record(line))]

    def count(**chosen: object) -> int:
        with index.connect() as db:
            return queries.episodes(db, Filter(**chosen)).num_all  # type: ignore[arg-type]

    assert count(outcome="solved") == sum(record.resolved for record in records)
    assert count(end="context", min_reward=1.0) == sum(r.end_reason == "context" and r.reward == 1 for r in records)
    assert count(min_version=5, max_version=7, outcome="failed") == sum(
        5 <= r.versions[1] <= 7 and not r.resolved for r in records
    )
    assert count(source="made") == 1
    assert count(repository="owner3/project3") == sum(r.task_id.startswith("owner3__") for r in records)
    assert count(task="project3-1") == sum("project3-1" in r.task_id for r in records)
    assert count(q="test_7 FAILED", outcome="failed") <= count(q="FAILED", outcome="failed") <= 241
    phrase = " ".join(records[9].messages[0].text.split()[2:6]).strip(":")
    assert records[9].episode_id in found(index, q=f'"{phrase}"')


@pytest.mark.parametrize("sort", queries.SORTS)
def test_pages_in_every_order_hold_every_episode_once(run_dir: Path, sort: str) -> None:
    index = Index(run_dir)
    index.update()
    seen = [name for page in range(1, 6) for name in found(index, sort=sort, page=page)]
    assert len(seen) == len(set(seen)) == 248


@pytest.mark.parametrize(
    ("words", "query"),
    [
        ("alpha beta", '"alpha" "beta"*'),
        ('"a phrase" x', '"a phrase" "x"*'),
        ("a OR b NOT (c)", '"a" "OR" "b" "NOT" "(c)"*'),
        ('say "', '"say"*'),
        ("-- == *", ""),
        ("done ", '"done"'),
    ],
)
def test_what_is_typed_is_no_query_language(words: str, query: str, run_dir: Path) -> None:
    assert match_of(words) == query
    found(Index(run_dir), q=words)


def test_a_query_that_cannot_be_read_is_named() -> None:
    for query in ({"page": "x"}, {"min_reward": "much"}, {"sort": "row; DROP TABLE episodes"}):
        with pytest.raises(ValueError, match=next(iter(query))):
            Filter.of(query)


def test_a_directory_that_cannot_be_written_gets_its_index_elsewhere(run_dir: Path) -> None:
    (run_dir / FILE_NAME).mkdir()  # nobody, root included, can make a file there
    index = Index(run_dir)
    assert index.path.parent != run_dir
    index.update()
    assert found(index)
    index.close()
    assert not index.path.exists()


def test_metrics_grow_and_a_step_trained_again_counts_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = Metrics(path)
    assert not metrics.update()
    lines = [{"kind": "step", "time": n, "step": n, "reward_mean": n / 10} for n in (1, 2, 3)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "step", "time": 4, "st')
    assert metrics.update()
    with path.open("a") as file:
        file.write(
            'ep": 4, "reward_mean": null}\n{"kind": "step", "time": 9, "step": 2, "reward_mean": 7}\nnoise\n[]\n'
        )
    metrics.update()
    assert [(r["step"], r.get("reward_mean")) for r in metrics.records] == [(1, 0.1), (2, 7.0), (3, 0.3), (4, None)]
    assert metrics.last_time == 9


def test_samples_of_a_long_run_are_thinned_and_the_newest_is_there(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"kind": "system", "time": {n}.0, "step": 0, "x": {n}}}\n' for n in range(50_000)))
    metrics = Metrics(path)
    metrics.update()
    assert len(metrics.samples) <= 2001
    assert metrics.newest["x"] == 49_999
    gaps = {b["time"] - a["time"] for a, b in zip(metrics.samples, metrics.samples[1:], strict=False)}
    assert max(gaps) < 200
    assert metrics.samples[-1]["time"] > 49_500


def test_a_run_says_in_a_sentence_what_it_does(made_run: Path, run_dir: Path) -> None:
    run = Run.open(run_dir)
    run.metrics.update()
    assert run.state() == "over"
    assert run.sentence().startswith("The run is over: 20 of 20 steps")
    (run_dir / "summary.json").unlink()
    last = run.metrics.last_time
    assert (run.state(last + 5), run.state(last + 50)) == ("live", "silent")
    part, sentence = bottleneck({"actors.episodes_generating": 9.0, "generator.kv_used_share": 0.97}, [{"wait_s": 5.0}])
    assert part == "generators"
    assert sentence == "The learner waits for the generators: 9 episodes are waiting for tokens, KV cache 97 % full."
    with pytest.raises(ConfigError, match="expected a run directory"):
        Run.open(run_dir / "logs")


def test_logs_are_found_by_name_and_a_name_is_no_path(run_dir: Path) -> None:
    assert fleet.log_path(run_dir, "learner-0") == run_dir / "logs" / "learner-0.log"
    assert fleet.log_path(run_dir, "../settings") is None
    (run_dir / "logs" / "learner-0.log").write_bytes(b"fine\nERROR \xff boom\n")
    first = fleet.processes(run_dir, {"replay.pressure.learner-0.cpu": 0.5})[0]
    assert (first.name, first.num_bad, first.pressure) == ("learner-0", 1, {"cpu": 0.5})


def test_the_placement_is_what_the_run_wrote_last(run_dir: Path) -> None:
    assert fleet.placement(run_dir / "logs") == ""
    (run_dir / "placement.txt").write_text("host0/abc  replay buffer\n")
    assert fleet.placement(run_dir) == "host0/abc  replay buffer\n"


def message(role: str, content: str, **fields: object) -> dict[str, object]:
    return {"role": role, "content": content} | fields


def test_a_story_branches_where_the_history_does() -> None:
    record = read_record(
        json.dumps(
            {
                "episode_id": "e",
                "messages": [
                    message("user", "issue"),
                    message("assistant", "one", tokens=[0, 1]),
                    message("tool", "answer one"),
                    message("assistant", "two", tokens=[2, 3]),
                    message("user", "aside", after=0),
                    message("assistant", "three", tokens=[4, 5], after=0),
                    message("assistant", "four", tokens=[6, 7]),
                ],
            }
        ).encode()
    )
    assert record is not None
    story = tell(record)
    assert [said.message.content for said in story.opening] == ["issue"]
    assert [turn.parent for turn in story.turns] == [0, 1, 1, 3]
    assert [turn.branches for turn in story.turns] == [False, False, True, False]
    assert [said.message.content for said in story.turns[2].given] == ["aside"]
    assert story.paths == [[1, 2], [1, 3, 4]]
    assert first_difference([story, story]) is None
    assert first_difference([story, story._replace(turns=story.turns[:2])]) == 3


def test_a_turn_is_taken_apart() -> None:
    text = "<think>hm</think>\nI look.\n```command\nls -l\n```\n"
    assert take_apart(text) == ("hm", "I look.", "ls -l")
    assert take_apart("no block") == ("", "no block", "")
    two = "```command\na\n```\n```command\nb\n```"
    assert take_apart(two) == ("", two, "")
    assert take_apart("````command\na\n```\nb\n````")[2] == "a\n```\nb"


def test_held_out_scores_are_those_of_the_runs_evaluated_checkpoints(tmp_path: Path) -> None:
    for name, model, score in (("b", "/r/checkpoints/step-20/hf", 0.5), ("a", "/r/checkpoints/step-5/hf", 0.25)):
        folder = tmp_path / "evaluations" / name
        folder.mkdir(parents=True)
        (folder / "settings.json").write_text(json.dumps({"model": {"path": model}}))
        (folder / "evaluation.json").write_text(json.dumps({"pass_at_1": {"mean": score, "se": 0.1}}))
    torn = tmp_path / "evaluations" / "torn"
    torn.mkdir()
    (torn / "evaluation.json").write_text('{"pass_at_1": {"me')
    assert held_out(tmp_path) == [(5, 0.25), (20, 0.5)]
    for version, score in ((10, 0.375), (20, 0.125)):  # while it trained; a checkpoint's own evaluation says more
        folder = tmp_path / "evaluations" / f"version-{version}"
        folder.mkdir()
        (folder / "evaluation.json").write_text(json.dumps({"version": version, "pass_at_1": {"mean": score}}))
    assert held_out(tmp_path) == [(5, 0.25), (10, 0.375), (20, 0.5)]
    assert [d.figure.title for d in draw(Metrics(tmp_path / "none"), "step", held_out(tmp_path))] == ["Held-out score"]
