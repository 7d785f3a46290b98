"""The whole system, every part real: one small run from launch to checkpoint, one that is interrupted and wounded."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from cluster import run_files
from console.run_data.held_out import held_out

ROOT = Path(__file__).parent.parent.parent
SMALL = {
    "--num-actors": 32,
    "--replay.batch": 16,
    "--replay.group-size": 4,
    "--tasks.count": 32,
    "--network.dashboard-port": 0,
    "--sandbox.backend": "namespace",
}
pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]


def command(run_dir, **extra):
    flags = SMALL | {"--run-dir": run_dir} | extra
    return [sys.executable, "launch.py", *(str(word) for pair in flags.items() for word in pair)]


class Launched:
    """A running launch.py with the processes it has been seen to own."""

    def __init__(self, run_dir, **extra):
        self.run_dir = run_dir
        self.output = (run_dir.parent / "output.txt").open("w+")
        self.temporary = Path(tempfile.mkdtemp(prefix="e2e-"))  # a short path: sockets are in it
        self.process = subprocess.Popen(
            command(run_dir, **extra),
            cwd=ROOT,
            env=os.environ | {"TMPDIR": str(self.temporary)},
            stdout=self.output,
            stderr=subprocess.STDOUT,
        )
        self._seen = {}
        self.private = set()  # the private directory of every life, named like everything that must vanish with it

    def children(self):
        """Every process that was ever seen below the launcher."""
        for child in psutil.Process(self.process.pid).children(recursive=True):
            self._seen[child.pid] = child
        self.private.update(owner.parent for owner in self.temporary.glob("longhaul-*/owner"))
        return list(self._seen.values())

    def leftovers(self):
        """What is still there of the run: processes, temporary files, shared memory, mounts, cgroups."""
        assert self.private
        _, left = psutil.wait_procs(list(self._seen.values()), timeout=0)
        for private in self.private:
            name = private.name
            left += [line for line in Path("/proc/mounts").read_text().splitlines() if name in line]
            left += run_files.SHARED_MEMORY.glob(f"{name}*")
            left += Path("/sys/fs/cgroup").rglob(f"*{name.removeprefix('longhaul-')}*")
        return left + list(self.temporary.iterdir())

    def wait_until(self, condition, timeout_s=400):
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert self.process.poll() is None, self.text()
            assert time.monotonic() < deadline, self.text()
            self.children()
            time.sleep(0.2)

    def steps(self):
        log = self.run_dir / "metrics.jsonl"
        if not log.exists():
            return []
        records = [json.loads(line) for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]
        return [record for record in records if record["kind"] == "step"]

    def kill_process(self, title):
        """SIGKILL the worker that Ray shows under `title`."""
        victims = [child for child in self.children() if _name(child).startswith(title)]
        assert victims, [_name(child) for child in self.children()]
        victims[0].kill()

    def text(self):
        self.output.seek(0)
        return self.output.read()

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.output.close()
        shutil.rmtree(self.temporary, ignore_errors=True)  # a launcher that had to be killed is still being cleaned up


def _name(process):
    try:
        return process.cmdline()[0]
    except (psutil.Error, IndexError):
        return ""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of three steps that ended by itself."""
    launched = Launched(tmp_path_factory.mktemp("e2e") / "run", **{"--steps": 3, "--checkpoint.every": 2})
    try:
        while launched.process.poll() is None:
            try:
                launched.children()
            except psutil.NoSuchProcess:
                break
            time.sleep(0.2)
        assert launched.process.wait(timeout=600) == 0, launched.text()
        yield launched, launched.leftovers()
    finally:
        launched.close()


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


def test_nothing_is_left_behind(finished):
    _, left = finished
    assert not left


def test_wounds_heal_and_sigterm_saves_a_checkpoint_and_leaves_nothing(tmp_path):
    evaluating = {"--eval.every": 2, "--eval.tasks-in-training": 4}
    launched = Launched(tmp_path / "run", **{"--steps": 1000, "--checkpoint.every": 0} | evaluating)
    try:
        launched.wait_until(lambda: len(launched.steps()) >= 1)
        for title in ("ray::SandboxActor", "ray::ReplayBuffer", "ray::Generator"):
            launched.kill_process(title)
            num_steps = len(launched.steps())
            launched.wait_until(lambda num_steps=num_steps: len(launched.steps()) >= num_steps + 2)
        assert launched.text().count("failed and is started again") == 3
        launched.wait_until(lambda: len(held_out(launched.run_dir)) >= 2)
        launched.children()
        os.kill(launched.process.pid, signal.SIGTERM)
        asked_at = time.monotonic()
        assert launched.process.wait(timeout=60) == 128 + signal.SIGTERM, launched.text()
        took_s = time.monotonic() - asked_at
        assert not launched.leftovers()
        last = int(launched.steps()[-1]["step"])
        assert (launched.run_dir / "checkpoints" / f"step-{last}" / "hf" / "model.safetensors").exists()
        print(f"stopped in {took_s:.1f} s")
        check_evaluations(launched)
    finally:
        launched.close()


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


def test_a_run_that_loses_a_learner_rank_goes_on_from_its_checkpoint(tmp_path):
    launched = Launched(tmp_path / "run", **{"--steps": 3, "--checkpoint.every": 1})
    try:
        launched.wait_until(lambda: (launched.run_dir / "checkpoints" / "step-1").exists())
        launched.kill_process("ray::Learner")
        launched.wait_until(lambda: "goes on from its checkpoint of step" in launched.text())
        while launched.process.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                launched.children()
            time.sleep(0.2)
        assert launched.process.wait(timeout=600) == 0, launched.text()
        assert "is gone" in launched.text() or "died" in launched.text()
        assert launched.steps()[-1]["step"] == 3
        assert (launched.run_dir / "checkpoints" / "step-3" / "hf" / "model.safetensors").exists()
        assert not launched.leftovers()
    finally:
        launched.close()


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
