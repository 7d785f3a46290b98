"""A batch graded by a reference policy at an endpoint, for all ranks: rank 0 asks and broadcasts what came.

The batch waits for the endpoint: rank 0 tells the others every few seconds, so that their own deadline covers a rank 0
that hangs. What cannot be had by the deadline is an error on every rank, with the endpoint's last words.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from learner.objectives.registry import loss_settings, needs_reference
from learner.objectives.samples import Sample
from learner.ranks.group import RankGroup
from learner.teacher.endpoint import TeacherEndpoint
from learner.teacher.vocabulary import check_vocabulary
from protocol.config import LossSettings, Settings
from protocol.errors import ConfigError, LearnerError, LonghaulError

Ask = Callable[[TeacherEndpoint], Awaitable[list[bytes]]]

_TOLD_EVERY_S = 5.0
_ANSWER, _WAIT, _STOP, _CONFIG, _ERROR = b"answer", b"wait", b"stop", b"config", b"error"
_LOOK_S = 10.0
"""Deadline of one answer to a check before the run, when nothing is to wait for a server that is not there."""


def asks_an_endpoint(settings: Settings) -> bool:
    """Whether log-probs of the reference policy come from elsewhere."""
    loss = loss_settings(settings)
    return loss.reference_endpoint is not None and needs_reference(loss)


async def check_teacher(settings: Settings, timeout_s: float = _LOOK_S) -> None:
    """The endpoint answers, serves the model, and has the run's tokenizer; nothing where no endpoint is asked.

    Raises:
        ConfigError: it does not.
    """
    if not asks_an_endpoint(settings):
        return
    try:
        async with _opened(loss_settings(settings), timeout_s) as endpoint:
            await _check(endpoint, settings)
    except LearnerError as error:
        raise ConfigError(f"--learner.loss.reference-endpoint: {error}", kind="teacher") from error


def proven_teacher(settings: Settings, group: RankGroup, stop: threading.Event) -> Teacher | None:
    """The teacher of a run, once `Teacher.prove` found it fit; None where no endpoint is asked."""
    if not asks_an_endpoint(settings):
        return None
    teacher = Teacher(settings, group, stop)
    teacher.prove()
    return teacher


class Teacher:
    """Grades samples; every rank has one, and calls alike.

    Args:
        settings: of the run, whose reference policy is at an endpoint.
        group: the learner's ranks.
        stop: ends a wait on all ranks, when set on rank 0.

    Attributes:
        waiting_for: what rank 0 waits for, in words; empty while it does not.
    """

    def __init__(self, settings: Settings, group: RankGroup, stop: threading.Event) -> None:
        self._settings, self._group, self._stop = settings, group, stop
        self._loss = loss_settings(settings)
        self.waiting_for = ""

    def prove(self) -> None:
        """As `check_teacher`, on all ranks; it waits for the endpoint as `grade` does, for half of a start's time.

        Raises:
            ConfigError, LearnerError: the same on every rank.
        """

        async def ask(endpoint: TeacherEndpoint) -> list[bytes]:
            await _check(endpoint, self._settings)
            return []

        patience_s = min(self._loss.reference_timeout_s, self._settings.start_timeout_s / 2)
        self._together(ask, "a first document", patience_s)

    def grade(self, samples: Sequence[Sample]) -> list[Sample] | None:
        """The samples with `reference`; None when `stop` was set before all of them were graded.

        Raises:
            LearnerError: as `TeacherEndpoint.logprobs`, the same on every rank.
        """

        async def ask(endpoint: TeacherEndpoint) -> list[bytes]:
            return [r.tobytes() for r in await asyncio.gather(*(endpoint.logprobs(s.token_ids) for s in samples))]

        frames = self._together(ask, f"{len(samples)} documents", self._loss.reference_timeout_s)
        if frames is None:
            return None
        rows = [np.frombuffer(frame, np.float32) for frame in frames]
        return [
            replace(sample, reference=np.append(row[1:], np.float32(0)))
            for sample, row in zip(samples, rows, strict=True)
        ]

    def _together(self, ask: Ask, what: str, timeout_s: float) -> list[bytes] | None:
        """What rank 0 was answered, on all ranks; None to stop."""
        with contextlib.ExitStack() as closing:
            tell = self._telling(closing, ask, what, timeout_s) if self._group.rank == 0 else None
            while True:
                told = tell() if tell is not None else None
                with self._group.doing("waiting for the reference policy"):
                    head, *frames = self._group.broadcast_frames(told)
                if head == _STOP:
                    return None
                if head in (_CONFIG, _ERROR):
                    kind, message = (frame.decode() for frame in frames)
                    raise (ConfigError if head == _CONFIG else LearnerError)(message, kind=kind)
                if head == _ANSWER:
                    return frames

    def _telling(
        self, closing: contextlib.ExitStack, ask: Ask, what: str, timeout_s: float
    ) -> Callable[[], list[bytes]]:
        """Waits a few seconds for the answer whenever it is called, and says what came or that it is to be waited for.

        The loop rests between two calls, for as long as a broadcast takes.
        """
        runner = closing.enter_context(asyncio.Runner())
        closing.callback(setattr, self, "waiting_for", "")
        endpoint = _opened(self._loss, timeout_s)

        async def asked() -> list[bytes]:
            async with endpoint:
                return await ask(endpoint)

        answer = runner.get_loop().create_task(asked())

        def tell() -> list[bytes]:
            if self._stop.is_set():
                return [_STOP]
            runner.run(asyncio.wait([answer], timeout=_TOLD_EVERY_S))
            if not answer.done():
                said = f", which last said: {endpoint.trouble}" if endpoint.trouble else ""
                self.waiting_for = f"log-probs of {what} from {endpoint.address}{said}"
                return [_WAIT]
            try:
                return [_ANSWER, *answer.result()]
            except LonghaulError as error:
                head = _CONFIG if isinstance(error, ConfigError) else _ERROR
                return [head, error.kind.encode(), str(error).encode()]

        return tell


def _opened(loss: LossSettings, timeout_s: float) -> TeacherEndpoint:
    assert loss.reference_endpoint is not None and loss.reference_name is not None, "the settings say both or neither"
    key = os.environ.get(loss.reference_api_key_variable)
    return TeacherEndpoint(loss.reference_endpoint, loss.reference_name, key, timeout_s=timeout_s)


async def _check(endpoint: TeacherEndpoint, settings: Settings) -> None:
    await endpoint.check_model(settings.model.max_context)
    await check_vocabulary(endpoint, Path(settings.model.path))
    await endpoint.logprobs(np.arange(2))  # scores are to be had at all
