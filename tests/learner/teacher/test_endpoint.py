"""Whatever a teacher's server answers but the scores of exactly these tokens is an error, never a number."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from learner.teacher.endpoint import TeacherEndpoint
from protocol.errors import LearnerError
from tests.learner.teacher.fake_server import FakeTeacher, scores

IDS = np.array([7, 300, 41, 5])


async def ask(teacher: FakeTeacher, timeout_s: float = 60.0) -> np.ndarray:
    async with TeacherEndpoint(teacher.address, "teacher", "secret", timeout_s=timeout_s) as endpoint:
        return await endpoint.logprobs(IDS)


async def test_the_very_ids_are_sent_and_their_scores_come_back(teacher: FakeTeacher) -> None:
    teacher.replies = [web.json_response(scores([-1.0, 0.0, -9999.0], IDS.tolist()))]
    assert (await ask(teacher)).tolist() == [0.0, -1.0, 0.0, -9999.0]
    (asked,) = teacher.asked
    assert asked["prompt"] == IDS.tolist() and asked["model"] == "teacher" and asked["prompt_logprobs"] == 0
    assert teacher.headers[0]["Authorization"] == "Bearer secret"


async def test_a_busy_server_is_asked_again(teacher: FakeTeacher) -> None:
    teacher.replies = [web.Response(status=503, text="loading"), web.Response(status=429, headers={"Retry-After": "0"})]
    assert (await ask(teacher)).tolist() == [0.0, -0.5, -0.5, -0.5]
    assert len(teacher.asked) == 3


@pytest.mark.usefixtures("impatient")
async def test_one_that_stays_away_is_told_with_its_last_words(teacher: FakeTeacher) -> None:
    teacher.replies = [web.Response(status=503, text="out of memory")]
    with pytest.raises(LearnerError, match="no answer within 60 s; last: status 503: out of memory") as told:
        await ask(teacher)
    assert told.value.kind == "teacher_away"
    teacher.address = "http://127.0.0.1:9/v1"
    with pytest.raises(LearnerError, match="no answer within 60 s; last: ClientConnector"):
        await ask(teacher)


async def test_no_call_outlasts_its_deadline(teacher: FakeTeacher) -> None:
    teacher.replies = [web.Response(status=503, text="loading") for _ in range(9)]
    with pytest.raises(LearnerError, match=r"no answer within 0\.6 s"):
        await ask(teacher, timeout_s=0.6)


async def test_a_refusal_is_told_at_once(teacher: FakeTeacher) -> None:
    teacher.replies = [web.Response(status=400, text="Token id 512 is out of vocabulary")]
    with pytest.raises(LearnerError, match="answered 400: Token id 512 is out of vocabulary") as told:
        await ask(teacher)
    assert told.value.kind == "teacher_refused" and len(teacher.asked) == 1


def body(change: Any) -> str:
    good = scores([-1.0, -2.0, -3.0], IDS.tolist())
    change(good["choices"][0]["prompt_logprobs"])
    return json.dumps(good)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(body(lambda rows: rows.pop()), id="one too few"),
        pytest.param(body(lambda rows: rows.append(rows[-1])), id="one too many"),
        pytest.param(body(lambda rows: rows.__setitem__(2, {"42": {"logprob": -1.0}})), id="another token"),
        pytest.param(body(lambda rows: rows.__setitem__(2, None)), id="a hole"),
        pytest.param(body(lambda rows: rows[2]["41"].update(logprob=None)), id="no number"),
        pytest.param(body(lambda rows: rows[2]["41"].update(logprob=float("nan"))), id="nan"),
        pytest.param(body(lambda rows: rows[2]["41"].update(logprob=float("-inf"))), id="infinite"),
        pytest.param(body(lambda rows: rows[2]["41"].update(logprob=0.1)), id="above one"),
        pytest.param('{"choices": [{"text": "hello"}]}', id="no scores"),
        pytest.param('{"choices": []}', id="no choice"),
        pytest.param("[1]", id="a list"),
        pytest.param("<html>welcome</html>", id="a page"),
    ],
)
async def test_another_answer_than_scores_of_these_tokens_is_refused(teacher: FakeTeacher, text: str) -> None:
    teacher.replies = [web.Response(text=text, content_type="application/json")]
    with pytest.raises(LearnerError, match="it is to be a vLLM server") as told:
        await ask(teacher)
    assert told.value.kind == "teacher_malformed" and len(teacher.asked) == 1
