"""The history of an episode: append-only, sampled ids as sampled."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.agent.chat import ChatTokenizer
from actors.agent.tokens import History
from actors.policy import Sampled
from protocol.errors import GeneratorError
from protocol.messages import NOT_SAMPLED

IDS = st.lists(st.integers(0, 400), min_size=1, max_size=20)


def _sampled(ids: list[int], version: int = 0, **changes: object) -> Sampled:
    fields = {
        "token_ids": np.array(ids, np.int32),
        "logprobs": -np.arange(1, len(ids) + 1, dtype=np.float32),
        "versions": np.full(len(ids), version, np.int32),
        "finish_reason": "stop",
    }
    return Sampled(**(fields | changes))


@given(st.lists(st.tuples(IDS, st.text(max_size=30)), min_size=1, max_size=5))
def test_every_part_stays_where_and_what_it_was(tokenizer: ChatTokenizer, turns: list[tuple[list[int], str]]) -> None:
    history = History(tokenizer)
    history.open([{"role": "user", "content": "issue"}])
    expected = [(int(i), 0, 0.0, NOT_SAMPLED) for i in history.token_ids]
    for version, (ids, observation) in enumerate(turns):
        before = history.token_ids
        start, end = history.append_sampled(_sampled(ids, version))
        assert (start, end) == (len(before), len(before) + len(ids))
        expected += [(i, 1, -float(n), version) for n, i in enumerate(ids, 1)]
        given_ids = history.encode_observation("user", observation)
        history.append_observation(given_ids)
        expected += [(int(i), 0, 0.0, NOT_SAMPLED) for i in given_ids]
        assert history.token_ids[: len(before)].tolist() == before.tolist()
    arrays = (history.token_ids, history.loss_mask, history.logprobs, history.versions)
    assert [a.dtype for a in arrays] == [np.int32, np.uint8, np.float32, np.int32]
    assert [tuple(row) for row in zip(*(a.tolist() for a in arrays), strict=True)] == expected


def test_sampled_text_is_never_tokenized_again(tokenizer: ChatTokenizer) -> None:
    history = History(tokenizer)
    history.open([{"role": "user", "content": "issue"}])
    letters = [int(i) for c in "command" for i in tokenizer.encode(c)]  # a tokenization that no encoder would choose
    assert letters != tokenizer.encode("command").tolist()
    start, end = history.append_sampled(_sampled([*letters, *tokenizer.stop_token_ids]))
    history.append_observation(history.encode_observation("user", "ok"))
    assert history.token_ids[start : end - 1].tolist() == letters


@pytest.mark.parametrize(
    "changes",
    [
        {"token_ids": np.empty(0, np.int32), "logprobs": np.empty(0, np.float32), "versions": np.empty(0, np.int32)},
        {"logprobs": np.zeros(1, np.float32)},
        {"versions": np.zeros(5, np.int32)},
    ],
)
def test_malformed_continuation_is_refused(tokenizer: ChatTokenizer, changes: dict[str, object]) -> None:
    history = History(tokenizer)
    history.open([{"role": "user", "content": "issue"}])
    before = len(history)
    with pytest.raises(GeneratorError, match="as many log-probs"):
        history.append_sampled(_sampled([1, 2, 3], **changes))
    assert len(history) == before
