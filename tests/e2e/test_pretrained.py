"""A model with real weights, SmolLM2-135M-Instruct, through every real part, against transformers.

It solves nothing by itself, so that episodes are short and their rewards are made here. One engine serves all of it;
one learner trains all weights, another one adapters.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from actors.agent.chat import ChatTokenizer
from actors.episodes.board import Board
from actors.episodes.episode_runner import EpisodeRunner
from actors.generator.own_process import GeneratorProcess
from actors.policies.generator_client import GeneratorClient
from learner.objectives.samples import Sample, make_samples
from protocol.config import Settings
from protocol.errors import ConfigError, LonghaulError
from protocol.messages import (
    Batch,
    BatchDone,
    BatchDoneReply,
    BatchRequest,
    BatchWait,
    CheckpointMark,
    CheckpointMarkReply,
    Trajectory,
    VersionReady,
    VersionReadyReply,
)
from protocol.sockets import Server
from sandbox.namespace.backend import NamespaceBackend
from sandbox.tasks.micro import make_tasks
from tests.actors.episodes.scripted_replay import make_lease
from tests.actors.gateway.history import TEMPLATE
from tiny.smollm2 import smollm2

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.vllm, pytest.mark.deepspeed, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
TASKS = {task.task_id: task for task in make_tasks(2, seed=1, difficulty=0, split="train")}
EXACT = 1e-5  # mean absolute difference of log-probs, float32
TURN_TOKENS, TURNS = 24, 2
PATIENCE_S = 400.0


@pytest.fixture(scope="module")
def model() -> Path:
    try:
        return smollm2()
    except ConfigError as error:
        pytest.skip(str(error))


def settings_of(path: Path, **sections: Any) -> Settings:
    base: dict[str, Any] = {
        "model": {"path": str(path), "max_context": 6144, "dtype": "float32"},
        "episode": {"prompt": "brief", "max_turn_tokens": TURN_TOKENS, "max_turns": TURNS, "wall_time_s": 300},
        "generator": {"max_running": 4, "kv_cache_mib": 768},
        "learner": {"ranks": 1, "zero_stage": 1, "lr": 1e-5, "logprob_chunk": 256},
        "steps": 5,
        "start_timeout_s": PATIENCE_S,
    }
    for name, more in sections.items():
        base[name] = base.get(name, {}) | more if isinstance(more, dict) else more
    return Settings.model_validate(base)


class Buffer:
    """Stands for the replay buffer: the batch that it is given, once for each learner; then the learner waits."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.batch: Batch | None = None
        self.num_done = 0  # steps

    async def serve(self) -> None:
        server = Server(self.endpoint)
        try:
            async for peer, message in server:
                match message:
                    case BatchRequest(version=0) if self.batch is not None:
                        await server.send(peer, self.batch)
                    case BatchRequest():
                        await server.send(peer, BatchWait(retry_after_s=0.1, waiting_for="episodes"))
                    case BatchDone():
                        self.num_done += 1
                        await server.send(peer, BatchDoneReply())
                    case CheckpointMark():
                        await server.send(peer, CheckpointMarkReply(journal_offset=0))
                    case VersionReady():
                        await server.send(peer, VersionReadyReply())
        finally:
            server.close()


class Ran:
    """What the run below left for the tests to judge."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self.model = folder, model
        self.episodes: list[Trajectory] = []  # sampled by version 0, with the rewards that were trained on
        self.after: list[Trajectory] = []  # by version 1
        self.foreign: Trajectory | None = None  # of mini-swe-agent
        self.foreign_sampled = 0.0
        self.foreign_missing = ""

    def outcome(self, name: str) -> dict[str, Any]:
        return dict(json.loads((self.folder / name / "outcome.json").read_text()))

    def export(self, name: str) -> Path:
        return self.folder / name / "checkpoints" / "step-1" / "hf"


@pytest.fixture(scope="module")
def ran(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    folder = tmp_path_factory.mktemp("pretrained")
    ran = Ran(folder, model)
    endpoints = {name: f"ipc://{folder}/{name}" for name in ("replay", "weights", "weights-lora", "g0")}
    runs = {"full": {}, "lora": {"lora_rank": 8, "lr": 1e-3}}
    job = [
        {
            "name": name,
            "settings": settings_of(model, learner=learner, model={"max_context": 1024}).model_dump(mode="json"),
            "replay": endpoints["replay"],
            "weights": endpoints["weights" if name == "full" else "weights-lora"],
        }
        for name, learner in runs.items()
    ]
    (folder / "job.json").write_text(json.dumps(job))
    program = Path(__file__).with_name("pretrained_learner.py")
    with (folder / "learner.txt").open("w") as log:
        learner = subprocess.Popen(
            [sys.executable, str(program), str(folder / "job.json")],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=log,
            stderr=log,
        )
        try:
            with GeneratorProcess(settings_of(model), "g0", endpoints["g0"], endpoints["weights"]) as generator:
                asyncio.run(play(ran, learner, Buffer(endpoints["replay"]), generator.endpoint))
            yield ran
        finally:
            learner.kill()
            learner.wait()


async def play(ran: Ran, learner: subprocess.Popen[bytes], buffer: Buffer, generator: str) -> None:
    """Episodes of the first version, a step of them, episodes of the second; an agent from outside beside."""
    serving = asyncio.create_task(buffer.serve())
    settings = settings_of(ran.model)
    policy = GeneratorClient([generator], settings.generator)
    try:
        async with asyncio.timeout(PATIENCE_S):
            played, _ = await asyncio.gather(episodes(settings, policy, version=0), foreign_episode(ran, policy))
            ran.episodes = shaped(played)
            buffer.batch = Batch(batch_id=1, trajectories=ran.episodes)
            await until(lambda: policy.status()["oldest_version"] == 1, learner, ran, "version 1 to be served")
            ran.after = await episodes(settings, policy, version=1)
            for index, name in enumerate(("full", "lora")):
                folder = ran.folder / name
                await until(lambda i=index: buffer.num_done > i, learner, ran, f"the step of {name}")
                (folder / "stop").touch()
                await until((folder / "outcome.json").exists, learner, ran, f"the end of {name}")
    finally:
        await policy.close()
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


async def until(condition: Any, learner: subprocess.Popen[bytes], ran: Ran, what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        said = (ran.folder / "learner.txt").read_text()[-3000:]
        assert time.monotonic() < deadline, f"waited {PATIENCE_S:g} s for {what}: {said}"
        assert not learner.poll(), said
        await asyncio.sleep(0.1)


async def episodes(settings: Settings, policy: GeneratorClient, version: int) -> list[Trajectory]:
    """Two of each of two tasks."""
    tokenizer = ChatTokenizer.load(Path(settings.model.path))
    backend = NamespaceBackend("pretrained-test")
    runner = EpisodeRunner(settings, policy, backend, TASKS, tokenizer, Board(), "pretrained-test")
    try:
        await runner.start()
        attempts = await asyncio.gather(*(runner.run(lease(i, version, settings)) for i in range(4)))
    finally:
        await runner.stop()
        await backend.close()
    return [attempt.trajectory for attempt in attempts]


def lease(number: int, version: int, settings: Settings) -> Any:
    task_id = list(TASKS)[number // 2]
    made = make_lease(number, task_id, version=version, max_turns=settings.episode.max_turns)
    sampling = msgspec.structs.replace(made.sampling, max_tokens=settings.episode.max_turn_tokens)
    return msgspec.structs.replace(
        made,
        episode_id=f"{task_id}/{version}/{number}",
        group_id=f"{task_id}/{version}",
        sampling=sampling,
        max_context=settings.model.max_context,
    )


def shaped(trajectories: list[Trajectory]) -> list[Trajectory]:
    """With rewards that a model can earn which solves nothing: by the ids that it sampled."""
    return [
        msgspec.structs.replace(each, reward=float((each.token_ids[each.loss_mask == 1] % 7 == 0).mean()))
        for each in trajectories
    ]


async def foreign_episode(ran: Ran, policy: GeneratorClient) -> None:
    """mini-swe-agent, unmodified, in a sandbox without network; where it cannot be had, why."""
    settings = settings_of(
        ran.model,
        agent={"harness": "mini-swe-agent", "tool_parser": "hermes"},
        sandbox={"memory_mib": 4096, "max_processes": 512, "disk_mib": 512},
    )
    tokenizer = ChatTokenizer.load(ran.model).with_template(TEMPLATE, "<|im_end|>", ["<|im_start|>", "<|im_end|>"])
    backend = NamespaceBackend("pretrained-test")
    runner = EpisodeRunner(settings, policy, backend, TASKS, tokenizer, Board(), "pretrained-test")
    try:
        await runner.start()
        ran.foreign = (await runner.run(lease(0, 0, settings))).trajectory
        ran.foreign_sampled = runner.status()["gateway_sampled_tokens"]
    except LonghaulError as error:
        ran.foreign_missing = str(error)
    finally:
        await runner.stop()
        await backend.close()


def plain(path: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def logprobs(causal_lm: Any, sample: Sample) -> torch.Tensor:
    """Of a sample's trained targets, by transformers."""
    trained = torch.from_numpy(sample.weights) > 0
    hidden = causal_lm.model(input_ids=torch.from_numpy(sample.token_ids)[None]).last_hidden_state[0, trained]
    targets = torch.from_numpy(sample.targets)[trained]
    return causal_lm.lm_head(hidden).log_softmax(-1).gather(1, targets[:, None])[:, 0]


def samples_of(ran: Ran, trajectories: list[Trajectory], version: int) -> list[Sample]:
    samples, left_out = make_samples(trajectories, settings_of(ran.model), version, vocab_size=49_152)
    assert not left_out
    return samples


def distance(causal_lm: Any, samples: list[Sample]) -> float:
    """Mean absolute difference of the behaviour's log-probs from the model's, over the sampled tokens."""
    with torch.no_grad():
        parts = [(logprobs(causal_lm, s) - torch.from_numpy(s.behaviour[s.weights > 0])).abs() for s in samples]
    return float(torch.cat(parts).mean())


def test_an_evaluation_plays_judges_and_samples_as_transformers_does(ran: Ran) -> None:
    assert [t.resolved for t in ran.episodes] == [False] * 4, "it writes no well-formed command by itself"
    for trajectory in ran.episodes:
        assert len(trajectory.turns) == TURNS and 0 < trajectory.loss_mask.sum() <= TURNS * TURN_TOKENS
        assert set(trajectory.versions[trajectory.loss_mask == 1]) == {0}
    assert distance(plain(ran.model), samples_of(ran, ran.episodes, 0)) < EXACT


def test_a_step_has_the_gradient_of_transformers(ran: Ran) -> None:
    (record,) = ran.outcome("full")["records"]
    samples = samples_of(ran, ran.episodes, 0)
    causal_lm = plain(ran.model)
    total = sum(float(sample.weights.sum()) for sample in samples)
    for sample in samples:  # the ratio is 1, so that nothing is clipped
        weighed = torch.from_numpy((sample.weights * sample.advantages)[sample.weights > 0])
        (-(logprobs(causal_lm, sample) * weighed).sum() / total).backward()
    norm = torch.stack([p.grad.norm() for p in causal_lm.parameters()]).norm()
    assert record["gradient_norm"] == pytest.approx(float(norm), rel=1e-3)
    assert record["trained_tokens"] == sum(int(t.loss_mask.sum()) for t in ran.episodes)
    assert record["fresh_mismatch_abs_mean"] < EXACT and ran.outcome("full")["proved"] < EXACT


def test_what_was_pushed_is_what_was_exported_and_what_samples(ran: Ran) -> None:
    before, exported = load_file(ran.model / "model.safetensors"), load_file(ran.export("full") / "model.safetensors")
    assert before.keys() == exported.keys()
    assert any(not exported[name].equal(before[name].float()) for name in before)
    samples = samples_of(ran, ran.after, 1)
    assert all(set(t.versions[t.loss_mask == 1]) == {1} for t in ran.after)
    old, new = distance(plain(ran.model), samples), distance(plain(ran.export("full")), samples)
    assert new < EXACT < old


def test_adapters_train_and_their_export_is_a_model_again(ran: Ran) -> None:
    (record,) = ran.outcome("lora")["records"]
    assert record["gradient_norm"] > 0 and record["fresh_mismatch_abs_mean"] < EXACT
    before, merged = load_file(ran.model / "model.safetensors"), load_file(ran.export("lora") / "model.safetensors")
    assert before.keys() == merged.keys()
    changed = {name for name in before if not merged[name].equal(before[name].float())}
    assert {name for name in before if "_proj." in name} == changed
    samples = samples_of(ran, ran.episodes, 0)
    assert distance(plain(ran.export("lora")), samples) > EXACT
    config = json.loads((ran.export("lora") / "config.json").read_text())
    assert config["dtype"] == "float32" and config["tie_word_embeddings"]


def test_an_agent_from_outside_has_every_sampled_token_trained_once(ran: Ran) -> None:
    if ran.foreign is None:
        pytest.skip(f"mini-swe-agent cannot be had: {ran.foreign_missing}")
    trajectory = ran.foreign
    assert not trajectory.drift
    sampled = sum(turn.end - turn.start for turn in trajectory.turns)
    assert sampled == int(trajectory.loss_mask.sum()) == ran.foreign_sampled > 0
    samples = samples_of(ran, [trajectory], 0)
    assert sum(int(np.count_nonzero(sample.weights)) for sample in samples) == sampled
    assert distance(plain(ran.model), samples) < EXACT
