"""A server that answers as a teacher does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

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
