"""A teacher in a real vLLM server scores as the one at the learner does."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from actors.generator.engine import engine_environment
from learner.teacher.endpoint import TeacherEndpoint
from learner.teacher.grading import check_teacher
from learner.training.logprobs import TokenLogprobs
from protocol.config import GeneratorSettings, Settings
from protocol.errors import ConfigError, LearnerError
from tests.ports import free_port
from tiny.model import save_random_model

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(400)]

MAX_CONTEXT = 256
START_S = 300.0


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A teacher's directory, and the address where it is served."""
    folder = tmp_path_factory.mktemp("served")
    path = save_random_model(folder / "teacher", seed=1, layers=1)
    port = free_port()
    flags = {"--model": path, "--served-model-name": "teacher", "--host": "127.0.0.1", "--port": port}
    flags |= {"--dtype": "float32", "--max-model-len": MAX_CONTEXT + 1, "--block-size": 32}
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--enforce-eager"]
    command += [str(part) for flag in flags.items() for part in flag]
    environment = os.environ | engine_environment(GeneratorSettings()) | {"VLLM_CPU_KVCACHE_SPACE": "1"}
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + START_S
        while not _listens(port):
            assert server.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()[-2000:]
            time.sleep(0.2)
        yield path, f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(60)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def settings_of(student: Path, address: str, max_context: int = MAX_CONTEXT) -> Settings:
    return Settings.model_validate(
        {
            "model": {"path": str(student), "max_context": max_context},
            "episode": {"max_turn_tokens": 64},
            "learner": {"loss": {"name": "distill", "reference_endpoint": address, "reference_name": "teacher"}},
        }
    )


def at_the_learner(path: Path, ids: np.ndarray) -> np.ndarray:
    """As the learner's own copy of a teacher scores."""
    causal_lm = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    row = torch.from_numpy(ids)[None]
    with torch.no_grad():
        scored, *_ = TokenLogprobs(causal_lm, 64, 1.0)(row, torch.arange(len(ids))[None], row.roll(-1))
    return scored[0, :-1].numpy()


def test_it_is_taken_and_its_scores_are_those_of_the_teacher_at_the_learner(
    served: tuple[Path, str], student: Path
) -> None:
    path, address = served
    asyncio.run(check_teacher(settings_of(student, address)))
    documents = [np.random.default_rng(n).integers(0, 512, n) for n in (1, 2, 50, 200, MAX_CONTEXT)]

    async def ask() -> list[np.ndarray]:
        async with TeacherEndpoint(address, "teacher", timeout_s=60) as endpoint:
            return list(await asyncio.gather(*(endpoint.logprobs(ids) for ids in documents)))

    for ids, scored in zip(documents, asyncio.run(ask()), strict=True):
        assert scored.shape == ids.shape and scored[0] == 0
        assert np.abs(scored[1:] - at_the_learner(path, ids)).max(initial=0) < 1e-4


def test_what_it_cannot_score_is_refused(served: tuple[Path, str], student: Path) -> None:
    _, address = served
    with pytest.raises(ConfigError, match=f"--max-model-len {MAX_CONTEXT + 2} or more"):
        asyncio.run(check_teacher(settings_of(student, address, MAX_CONTEXT + 1)))
    with pytest.raises(ConfigError, match="its tokenizer is not that of"):
        asyncio.run(check_teacher(settings_of(Path("assets/tiny"), address)))

    async def ask() -> None:
        async with TeacherEndpoint(address, "teacher", timeout_s=60) as endpoint:
            await endpoint.logprobs(np.array([5, 512]))

    with pytest.raises(LearnerError, match=r"answered 400: .*Token id 512 is out of vocabulary"):
        asyncio.run(ask())
