"""Shared by the actors' tests: a tiny tokenizer as a model directory has it, and unisolated sandboxes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path

import pytest

from actors.agent.chat import ChatTokenizer
from actors.policies import generator_client
from protocol.messages import Tokens
from sandbox.base import Backend, Sandbox, SandboxSpec
from sandbox.fake import FakeBackend
from tiny.model import build_tokenizer

OpenSandbox = Callable[[Mapping[str, str | bytes]], Awaitable[Sandbox]]


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with nothing but the tokenizer's files."""
    path = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def tokenizer(tokenizer_dir: Path) -> ChatTokenizer:
    return ChatTokenizer.load(tokenizer_dir)


@pytest.fixture
async def open_sandbox(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[OpenSandbox]:
    """Starts a sandbox that holds the given files; of the fake backend unless the test names another."""
    backend: Backend = getattr(request, "param", FakeBackend)("actor-tests")
    capabilities = await backend.probe()
    if not capabilities.available:
        pytest.skip(f"no {backend.name} sandboxes here: {capabilities.reason}")
    made = 0

    async def start(files: Mapping[str, str | bytes]) -> Sandbox:
        nonlocal made
        made += 1
        source = tmp_path / f"source-{made}"
        source.mkdir()
        for path, content in files.items():
            (source / path).parent.mkdir(parents=True, exist_ok=True)
            (source / path).write_bytes(content.encode() if isinstance(content, str) else content)
        return await backend.create(SandboxSpec(run="actor-tests", lease=f"lease-{made}", source=source))

    yield start
    await backend.close()


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tokens that reached a client of the generators, in their order."""
    ids: list[int] = []
    add = generator_client._Continuation.add

    def noted(part: generator_client._Continuation, tokens: Tokens) -> None:
        add(part, tokens)
        ids.extend(tokens.token_ids.tolist())

    monkeypatch.setattr(generator_client._Continuation, "add", noted)
    return ids
