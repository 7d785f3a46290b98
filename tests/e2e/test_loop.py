"""The whole system, every part real: one small run from launch to checkpoint, one that is interrupted and wounded."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.launched import MEASURED, Launched, title_of
from console.run_data.held_out import held_out
from console.run_data.records import read_record
from console.run_data.task_states import read_tasks
from tests.console.chromium import assert_silent, chromium, console, needs_chromium

ROOT = Path(__file__).parent.parent.parent
SMALL = {
    "--num-actors": 32,
    "--replay.batch": 16,
    "--replay.group-size": 4,
    "--tasks.count": 32,
    "--network.dashboard-port": 0,
    "--sandbox.backend": "namespace",
}
AGAIN = "failed and is started again"
LOSS = r"the ranks start again from step (\d+), the others work on"
pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]


def arguments_of(run_dir, **extra):
    flags = SMALL | {"--run-dir": run_dir} | extra
    return [str(word) for pair in flags.items() for word in pair]


def command(run_dir, **extra):
    return [sys.executable, "launch.py", *arguments_of(run_dir, **extra)]


@contextlib.contextmanager
def launched_run(run_dir, **extra):
    temporary = Path(tempfile.mkdtemp(prefix="e2e-"))
    launched = Launched(run_dir, arguments_of(run_dir, **extra), temporary, run_dir.parent / "output.txt")
    try:
        yield launched
    finally:
        launched.close()
        shutil.rmtree(temporary, ignore_errors=True)  # a launcher that had to be killed is still being cleaned up


def kill_process(launched, title):
    """SIGKILL the worker that Ray shows under `title`."""
    victims = launched.titled(title)
    assert victims, [title_of(child) for child in launched.children()]
    victims[0].kill()


def pids(launched, title):
    return {child.pid for child in launched.titled(title)}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of three steps that ended by itself."""
    flags = {"--steps": 3, "--checkpoint.every": 2}
    with launched_run(tmp_path_factory.mktemp("e2e") / "run", **flags) as launched:
        assert launched.wait_for_end() == 0, launched.text()
        assert launched.private
        yield launched, list(launched.leftovers())


def test_the_run_takes_its_steps_on_real_episodes(finished):
    launched, _ = finished
    steps = launched.steps()
    assert [record["step"] for record in steps] == [1, 2, 3]
    for record in steps:
        assert record["num_trajectories"] == 16
        assert record["turns_mean"] >= 1
        assert record["staleness_max"] <= 4
        assert 0 < record["reward_mean"] < 1  # groups without signal were filtered out
        assert record["gradient_norm"] > 0


def test_generator_and_learner_agree_on_log_probs(finished):
    launched, _ = finished
    assert launched.steps()[0]["fresh_mismatch_abs_mean"] < 1e-4


def test_the_summary_is_on_screen_and_on_disk(finished):
    launched, _ = finished
    text = launched.text()
    for words in ("optimizer steps", "episodes finished", "generated tokens/s", "dashboard http://127.0.0.1"):
        assert words in text
    assert "Traceback" not in text
    summary = json.loads((launched.run_dir / "summary.json").read_text())
    assert summary["steps"] == 3
    assert summary["episodes"] >= 48


def test_the_run_directory_has_settings_metrics_and_a_log_a_process(finished):
    launched, _ = finished
    assert json.loads((launched.run_dir / "settings.json").read_text())["num_actors"] == 32
    logs = {path.stem for path in (launched.run_dir / "logs").glob("*.log")}
    assert {"replay-buffer", "generator-0", "learner-0", "learner-1", "sandbox-actor-0"} <= logs
    assert list((launched.run_dir / "tensorboard").glob("events*"))


def test_the_checkpoint_loads_in_transformers(finished):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    launched, _ = finished
    directory = launched.run_dir / "checkpoints" / "step-3" / "hf"
    model = AutoModelForCausalLM.from_pretrained(directory)
    before = AutoModelForCausalLM.from_pretrained(ROOT / "assets" / "tiny")
    assert any(not a.equal(b) for a, b in zip(model.parameters(), before.parameters(), strict=True))
    assert AutoTokenizer.from_pretrained(directory).chat_template


def test_vllm_loads_the_checkpoint_and_an_evaluation_starts_no_learner(finished, tmp_path):
    launched, _ = finished
    model = launched.run_dir / "checkpoints" / "step-3" / "hf"
    flags = {"--phase": "eval", "--model.path": model, "--eval.runs": 1, "--tasks.count": 8}
    subprocess.run(command(tmp_path / "eval", **flags), cwd=ROOT, check=True, timeout=400)
    written = json.loads((tmp_path / "eval" / "evaluation.json").read_text())
    assert (written["num_tasks"], written["num_runs"]) == (8, 1)
    assert not list((tmp_path / "eval" / "logs").glob("learner*"))


def test_a_step_of_the_run_is_trained_again_to_the_last_digit(finished):
    launched, _ = finished
    asked = [sys.executable, "-m", "cluster.front_door", "replay", launched.run_dir, "--step", "3", "--json"]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["equal"] and found["logged"]["gradient_norm"] == launched.steps()[2]["gradient_norm"]
    assert len(found["again"]) > 30


def test_the_console_shows_what_the_run_recorded(finished):
    """From a share of the episodes: an episode's moments are in their order, and its trace has them."""
    launched, _ = finished
    files = (launched.run_dir / "trajectories").glob("*.jsonl")
    lines = [line for path in files for line in path.read_bytes().splitlines(keepends=True)]
    records = [record for line in lines if (record := read_record(line))]
    assert records
    for record in records:
        moments = [message.at for message in record.messages if message.at is not None]
        assert moments and moments == sorted(moments)
        assert record.started_at <= moments[0] and moments[-1] <= record.judged_from <= record.finished_at
    told = read_tasks(launched.run_dir)
    assert sum(state.runs for state in told.values()) >= 48
    assert sum(state.chance for state in told.values()) == pytest.approx(1)


@needs_chromium
def test_every_page_of_the_run_is_silent_in_a_browser(finished):
    """Pages are found as a person finds them: from a step to its group, its episode, its tokens, its task."""
    launched, _ = finished
    with console(launched.run_dir) as address, chromium() as driver:
        pages = ["/", "/?x=time", "/episodes", "/tasks", "/steps", "/step?n=3", "/evaluations", "/fleet", "/settings"]
        assert_silent(driver, address, [*pages, "/log?name=learner-0", "/compare"])
        driver.get(f"{address}/step?n=3")
        links = [link.get_attribute("href").removeprefix(address) for link in driver.find_elements("tag name", "a")]
        driver.get(f"{address}/episodes")
        assert driver.find_elements("css selector", "tbody a.go")
        links += [link.get_attribute("href").removeprefix(address) for link in driver.find_elements("tag name", "a")]
        wanted = {link.partition("?")[0]: link for link in links}  # one of each kind
        assert {"/episode", "/task"} <= wanted.keys()
        assert_silent(driver, address, list(wanted.values()))


def test_nothing_is_left_behind(finished):
    _, left = finished
    assert not left


def test_wounds_heal_and_sigterm_saves_a_checkpoint_and_leaves_nothing(tmp_path):
    evaluating = {"--eval.every": 2, "--eval.tasks-in-training": 4}
    flags = {"--steps": 1000, "--checkpoint.every": 0} | evaluating
    with launched_run(tmp_path / "run", **flags) as launched:
        launched.wait(lambda: launched.steps(), "a step")
        for times, title in enumerate(("ray::SandboxActor", "ray::ReplayBuffer", "ray::Generator"), start=1):
            kill_process(launched, title)
            launched.wait(lambda times=times: launched.text().count(AGAIN) >= times, f"the loss of {title} to be told")
            num_steps = len(launched.steps())
            launched.wait(lambda num_steps=num_steps: len(launched.steps()) >= num_steps + 2, f"steps without {title}")
        assert launched.text().count(AGAIN) == 3
        launched.wait(lambda: len(held_out(launched.run_dir)) >= 2, "two evaluations")
        launched.children()
        os.kill(launched.process.pid, signal.SIGTERM)
        assert launched.wait_for_end() == 128 + signal.SIGTERM, launched.text()
        assert not list(launched.leftovers())
        last = int(launched.steps()[-1]["step"])
        assert (launched.run_dir / "checkpoints" / f"step-{last}" / "hf" / "model.safetensors").exists()
        check_evaluations(launched)


def check_evaluations(launched):
    """What was scored beside the training is the same on disk, in the metrics and in the summary."""
    curve = held_out(launched.run_dir)
    lines = [json.loads(line) for line in (launched.run_dir / "metrics.jsonl").read_text().splitlines()]
    metrics = [line for line in lines if line["kind"] == "eval"]
    assert [(line["step"], line["pass_at_1"]) for line in metrics] == curve
    assert all((line["episodes"], line["episodes_asked"]) == (4, 4) for line in metrics)
    assert all(line["step"] <= line["oldest_version"] <= line["newest_version"] for line in metrics)
    summary = json.loads((launched.run_dir / "summary.json").read_text())
    assert (summary["held_out_first"], summary["held_out_last"]) == (curve[0][1], curve[-1][1])
    trained = "".join(path.read_text() for path in (launched.run_dir / "trajectories").glob("*.jsonl"))
    assert "micro-heldout" not in trained


def taken_twice(launched):
    """Steps of which there are two records."""
    return [step for step, times in Counter(int(record["step"]) for record in launched.steps()).items() if times == 2]


def test_a_run_that_loses_a_learner_rank_works_on_while_the_ranks_redo_their_steps(tmp_path):
    """Steps after the checkpoint are taken again from the same batches, to the last bit; nothing else is restarted."""
    every = 8  # struck well before the next checkpoint, however fast the steps are
    with launched_run(tmp_path / "run", **{"--steps": 1000, "--checkpoint.every": every}) as launched:

        def is_between_checkpoints():
            since = (done := len(launched.steps())) % every
            return 2 <= since <= 4 and (launched.run_dir / "checkpoints" / f"step-{done - since}").exists()

        launched.wait(lambda: launched.steps(), "a step")
        others = ("ray::SandboxActor", "ray::ReplayBuffer", "ray::Generator")
        before = {title: pids(launched, title) for title in others}
        launched.wait(is_between_checkpoints, "steps after a checkpoint")
        kill_process(launched, "ray::Learner")
        launched.wait(lambda: re.search(LOSS, launched.text()), "the loss to be told")
        launched.wait(lambda: "the learner is at work again" in launched.text(), "the ranks")
        assert {title: pids(launched, title) for title in others} == before
        saved = int(re.search(LOSS, launched.text())[1])
        assert saved % every == 0
        launched.wait(lambda: (lost := taken_twice(launched)) and launched.steps()[-1]["step"] > max(lost), "new steps")
        os.kill(launched.process.pid, signal.SIGTERM)
        assert launched.wait_for_end() == 128 + signal.SIGTERM, launched.text()
        assert "is gone" in launched.text() or "died" in launched.text()
        records, lost = launched.steps(), taken_twice(launched)
        last = int(records[-1]["step"])
        assert [record["step"] for record in records] == [*range(1, max(lost) + 1), *range(saved + 1, last + 1)]
        for step in lost:
            first, again = (record for record in records if record["step"] == step)
            assert {name for name in first.keys() | again.keys() if first.get(name) != again.get(name)} <= {*MEASURED}
            assert first["gradient_norm"] > 0
        assert (launched.run_dir / "checkpoints" / f"step-{last}" / "hf" / "model.safetensors").exists()
        assert not list(launched.leftovers())


def test_a_process_that_cannot_start_is_named_with_its_own_error(tmp_path):
    """A model whose files are all there, but whose architecture nobody knows."""
    from tiny.model import save_random_model

    model = save_random_model(tmp_path / "model")
    broken = json.loads((model / "config.json").read_text()) | {"architectures": ["NoSuchModelForCausalLM"]}
    (model / "config.json").write_text(json.dumps(broken))
    done = subprocess.run(
        command(tmp_path / "run", **{"--model.path": model, "--steps": 1}),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode in (1, 2), done.stdout
    assert "NoSuchModelForCausalLM" in done.stderr
