"""A server that answers as a teacher does, and a deadline that comes when it is wanted."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer

from tests.learner.teacher.fake_server import FakeTeacher, serving
from tiny.model import save_random_model


@pytest.fixture(scope="session")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_model(tmp_path_factory.mktemp("student"))


@pytest.fixture
def teacher(student: Path) -> Iterator[FakeTeacher]:
    with serving(FakeTeacher(Tokenizer.from_file(str(student / "tokenizer.json")))) as fake:
        yield fake


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The deadline of a call comes with its first pause, however long the try before it took."""

    async def until_the_deadline(_: float) -> None:
        raise TimeoutError

    own = SimpleNamespace(**vars(asyncio) | {"sleep": until_the_deadline})
    monkeypatch.setattr("learner.teacher.endpoint.asyncio", own)
