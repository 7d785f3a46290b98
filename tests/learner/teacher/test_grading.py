"""A batch waits for its teacher, on all ranks; what goes wrong is said on each of them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from aiohttp import web

from learner.objectives.samples import Sample, make_samples
from learner.ranks.group import RankGroup
from learner.teacher import grading
from learner.teacher.grading import Teacher, proven_teacher
from protocol.config import Settings
from protocol.errors import ConfigError, LearnerError
from tests.learner.teacher.fake_server import FakeTeacher
from tests.learner.teacher.test_vocabulary import settings_of
from tests.ports import free_port
from tiny.trajectories import random_batch


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Iterator[RankGroup]:
    """One rank."""
    environment = dict(os.environ)
    group = RankGroup(0, 1, "127.0.0.1", free_port(), sequence_parallel=1, start_timeout_s=60, timeout_s=60)
    yield group
    group.close()
    os.environ.clear()
    os.environ.update(environment)


def samples_of(settings: Settings) -> list[Sample]:
    batch = random_batch(np.random.default_rng(0), [30, 50, 40, 20], group_size=2)
    return make_samples(batch, settings, 0, 512)[0]


def test_every_target_has_its_score(student: Path, teacher: FakeTeacher, group: RankGroup) -> None:
    settings = settings_of(student, teacher)
    teacher._score = lambda ids: [-float(i) for i in ids[1:]]
    found = proven_teacher(settings, group, threading.Event())
    assert found is not None
    samples = samples_of(settings)
    graded = found.grade(samples)
    assert graded is not None and found.waiting_for == ""
    for sample, before in zip(graded, samples, strict=True):
        assert sample.reference is not None and sample.reference.dtype == np.float32
        assert sample.reference[:-1].tolist() == [-float(i) for i in before.targets[:-1]] and sample.reference[-1] == 0
    assert proven_teacher(settings_of(student, teacher, name="dapo"), group, threading.Event()) is None


def test_a_batch_waits_and_says_for_what_until_it_is_stopped(
    student: Path, teacher: FakeTeacher, group: RankGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grading, "_TOLD_EVERY_S", 0.05)
    teacher.replies = [web.Response(status=503, text="loading") for _ in range(1000)]
    settings, stop = settings_of(student, teacher), threading.Event()
    waiting, said = Teacher(settings, group, stop), []

    def stop_when_it_says_so() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and "loading" not in waiting.waiting_for:
            time.sleep(0.01)
        said.append(waiting.waiting_for)
        stop.set()

    watching = threading.Thread(target=stop_when_it_says_so)
    watching.start()
    assert waiting.grade(samples_of(settings)) is None
    watching.join()
    assert said == [f"log-probs of 4 documents from {teacher.address}, which last said: status 503: loading"]
    assert waiting.waiting_for == ""


@pytest.mark.usefixtures("impatient")
def test_what_is_wrong_ends_the_step_with_the_servers_words(
    student: Path, teacher: FakeTeacher, group: RankGroup
) -> None:
    settings = settings_of(student, teacher, reference_timeout_s=60)
    one = Teacher(settings, group, threading.Event())
    teacher.replies = [web.Response(status=400, text="too long")]
    with pytest.raises(LearnerError, match="answered 400: too long") as told:
        one.grade(samples_of(settings))
    assert told.value.kind == "teacher_refused"
    teacher.replies = [web.Response(status=503, text="loading") for _ in range(1000)]
    with pytest.raises(LearnerError, match="no answer within 60 s; last: status 503: loading"):
        one.grade(samples_of(settings))
    teacher.spell = lambda ids: "x"
    with pytest.raises(ConfigError, match="its tokenizer is not that of"):
        one.prove()
