"""The token tree of a conversation, against the template's own text and against the plain history."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.agent.chat import ChatTokenizer
from actors.agent.tokens import History
from actors.history.conversation import Conversation, Prompt
from actors.history.matching import Message
from actors.policy import Sampled
from protocol.errors import GeneratorError


def sampled(tokenizer: ChatTokenizer, text: str, *, cut: bool = False, version: int = 0) -> Sampled:
    """What a policy samples that writes `text` in a tokenization that no encoder would choose: letter by letter."""
    letters = [int(i) for letter in text for i in tokenizer.encode(letter)]
    ids = np.array(letters + ([] if cut else tokenizer.stop_token_ids[:1]), np.int32)
    n = len(ids)
    return Sampled(
        token_ids=ids,
        logprobs=-np.arange(1, n + 1, dtype=np.float32),
        versions=np.full(n, version, np.int32),
        finish_reason="length" if cut else "stop",
    )


def answer(text: str, **fields: object) -> Message:
    return {"role": "assistant", "content": text, **fields}


def turn(conversation: Conversation, tokenizer: ChatTokenizer, chat: Sequence[Message], text: str) -> Prompt:
    """One turn that says `text`."""
    prompt = conversation.open(chat)
    conversation.record(prompt, sampled(tokenizer, text), answer(text))
    return prompt


WORDS = st.text("ab <|>\n", max_size=12)
ISSUE: Message = {"role": "user", "content": "issue"}


@given(st.lists(st.tuples(st.text("abc", min_size=1, max_size=8), WORDS, st.booleans()), min_size=1, max_size=5))
def test_a_straight_conversation_has_the_ids_of_the_plain_history(
    tokenizer: ChatTokenizer, turns: list[tuple[str, str, bool]]
) -> None:
    conversation, history = Conversation(tokenizer), History(tokenizer)
    chat: list[Message] = [ISSUE]
    history.open(chat)
    for text, observation, cut in turns:
        prompt = conversation.open(chat)
        assert prompt.token_ids.tolist() == history.token_ids.tolist()
        assert not prompt.drift
        said = sampled(tokenizer, text, cut=cut)
        conversation.record(prompt, said, answer(text))
        history.append_sampled(said)
        history.append_observation(history.encode_observation("user", observation))
        chat += [answer(text), {"role": "user", "content": observation}]
    assert conversation.num_branches == 1
    assert conversation.tree.segment_starts is None
    n = len(conversation.tree)
    for name in ("token_ids", "loss_mask", "logprobs", "versions"):
        assert getattr(conversation.tree, name).tolist() == getattr(history, name)[:n].tolist()


def test_a_message_is_the_same_whatever_clients_make_of_it(tokenizer: ChatTokenizer) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "shell", "arguments": '{"b": 1,"a": [2]}'}}
    said = answer("I look.", reasoning_content="where is it?", tool_calls=[call])
    changed = {
        "tool_calls": [{"function": {"arguments": json.dumps({"a": [2], "b": 1}), "name": "shell"}, "id": "x9"}],
        "refusal": None,
        "content": "I look.\n",
        "role": "assistant",
    }
    for sent in (said, changed):
        conversation = Conversation(tokenizer)
        prompt = conversation.open([ISSUE])
        conversation.record(prompt, sampled(tokenizer, "I look."), said)
        again = conversation.open([ISSUE, sent, {"role": "tool", "content": "ok", "tool_call_id": "x9"}])
        assert again.place.given == [
            {"role": "tool", "content": "ok", "tool_call_id": "1" if sent is changed else "x9"}
        ]
        assert not again.drift or set(again.drift) == {"template"}  # this template shows no calls


def test_a_changed_past_branches_at_the_first_token_that_differs(tokenizer: ChatTokenizer) -> None:
    conversation = Conversation(tokenizer)
    chat: list[Message] = [ISSUE, answer("one"), {"role": "user", "content": "aaa bbb"}]
    turn(conversation, tokenizer, chat[:1], "one")
    first = turn(conversation, tokenizer, chat, "two")
    chat[2] = {"role": "user", "content": "aaa ccc"}
    prompt = conversation.open(chat)
    equal = int(np.argmin(prompt.token_ids[: len(first.token_ids)] == first.token_ids[: len(prompt.token_ids)]))
    assert prompt.num_reused == equal
    conversation.record(prompt, sampled(tokenizer, "three"), answer("three"))
    tree = conversation.tree
    assert conversation.num_branches == 2
    assert int(tree.loss_mask.sum()) == sum(len(t.sampled_ids) for t in conversation.turns)
    assert tree.path_ids(conversation.turns[2].end - 1).tolist() == [
        *prompt.token_ids,
        *sampled(tokenizer, "three").token_ids,
    ]


def test_an_edit_keeps_what_was_sampled_after_it(tokenizer: ChatTokenizer) -> None:
    conversation = Conversation(tokenizer)
    chat: list[Message] = [ISSUE, answer("one"), {"role": "user", "content": "result"}, answer("two")]
    turn(conversation, tokenizer, chat[:1], "one")
    turn(conversation, tokenizer, chat[:3], "two")
    chat[2] = {"role": "user", "content": "[cleared]"}
    prompt = conversation.open([*chat, {"role": "user", "content": "go on"}])
    letters = sampled(tokenizer, "two").token_ids.tolist()
    ids = prompt.token_ids.tolist()
    assert any(ids[i : i + len(letters)] == letters for i in range(len(ids)))  # letter by letter still
    assert set(prompt.drift) == {"edited"}
    conversation.record(prompt, sampled(tokenizer, "three"), answer("three"))
    assert int(conversation.tree.loss_mask.sum()) == sum(len(t.sampled_ids) for t in conversation.turns)


def test_a_sub_agent_is_a_branch_and_no_drift(tokenizer: ChatTokenizer) -> None:
    conversation = Conversation(tokenizer)
    chat: list[Message] = [{"role": "system", "content": "main"}, ISSUE]
    turn(conversation, tokenizer, chat, "one")
    helper: list[Message] = [{"role": "system", "content": "title"}, {"role": "user", "content": "name it"}]
    side = turn(conversation, tokenizer, helper, "a title")
    assert not side.drift
    chat += [answer("one"), {"role": "user", "content": "result"}]
    main = turn(conversation, tokenizer, chat, "two")
    assert not main.drift
    assert conversation.num_branches == 2
    assert conversation.tree.segment_parents is not None


def test_the_same_request_again_is_a_second_turn_of_the_same_prompt(tokenizer: ChatTokenizer) -> None:
    conversation = Conversation(tokenizer)
    turn(conversation, tokenizer, [ISSUE], "one")
    turn(conversation, tokenizer, [ISSUE], "one")
    assert conversation.num_branches == 2
    again = conversation.open([ISSUE, answer("one"), {"role": "user", "content": "on"}])
    assert again.place.base == conversation.turns[-1].end - 1
    assert not again.drift


def test_a_failed_turn_leaves_no_trace(tokenizer: ChatTokenizer) -> None:
    conversation = Conversation(tokenizer)
    prompt = conversation.open([ISSUE])
    empty = Sampled(
        token_ids=np.empty(0, np.int32),
        logprobs=np.empty(0, np.float32),
        versions=np.empty(0, np.int32),
        finish_reason="cancelled",
    )
    with pytest.raises(GeneratorError, match="at least one"):
        conversation.record(prompt, empty, answer(""))
    assert len(conversation.tree) == 0
    assert not conversation.turns


def test_an_assistants_message_that_nobody_sampled_is_foreign(tokenizer: ChatTokenizer) -> None:
    conversation = Conversation(tokenizer)
    prompt = turn(conversation, tokenizer, [ISSUE, answer("an example"), ISSUE], "one")
    assert set(prompt.drift) == {"foreign"}
    assert conversation.drift["foreign"] == prompt.drift["foreign"] > 0
