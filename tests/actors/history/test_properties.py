"""Random agents: they call tools, ask, rewrite their past, try again and start others, all in one episode."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.history.conversation import Conversation
from actors.history.matching import Message, read
from actors.history.rendering import Rendering
from actors.policy import Sampled
from learner.objectives.samples import make_samples
from protocol.config import Settings
from protocol.messages import Trajectory
from tests.actors.history.families import FAMILIES, Family
from tests.actors.history.test_templates import as_sampled, asks, result, says, squashed
from tiny.trajectories import random_trajectory

TOLERANT = ["qwen2.5", "qwen3", "glm-4.5", "deepseek-v3.1"]
"""Their templates take any order of roles; the others refuse some of what these agents do."""
THINKING = {"qwen3", "glm-4.5"}
SAID_BY_PEOPLE = ["", "ok", "<b> x", " a\nb ", "<|im_end|>", 'it\'s </think> "q"']
TEXTS = st.one_of(st.sampled_from(SAID_BY_PEOPLE), st.text('ab <>\n{"', max_size=8))
WORDS = st.one_of(st.sampled_from(["", "ok", "Done.", "<b> x"]), st.text("ab .{", max_size=8))


class Agents:
    """Several agents of one episode, each with its messages as it remembers them."""

    def __init__(self, family: Family, data: st.DataObject) -> None:
        self.family, self.draw = family, data.draw
        self.conversation = Conversation(family.tokenizer())
        self.rendering = Rendering(family.tokenizer())
        self.chats: list[list[Message]] = [[{"role": "system", "content": "main"}, asks("go")]]
        self.full: dict[int, Message] = {}  # by identity of a message of a chat: with its reasoning
        self.thoughts: dict[str, str] = {}
        self.kept: list[Message] = []  # alive, so that the identity of each is its own
        self.seen: list[tuple[list[int], Sampled]] = []

    def act(self) -> None:
        """One thing that an agent does."""
        chat = self.draw(st.sampled_from(self.chats))
        kind = self.draw(st.sampled_from(["turn", "turn", "turn", "again", "edit", "compact", "start"]))
        if kind == "start":
            self.chats.append([{"role": "system", "content": self.draw(TEXTS)}, asks(self.draw(TEXTS))])
        elif kind == "edit":
            index = self.draw(st.sampled_from([i for i, m in enumerate(chat) if m["role"] != "assistant"]))
            chat[index] = {**chat[index], "content": self.draw(TEXTS)}
        elif kind == "compact":
            del chat[1 : self.draw(st.integers(1, len(chat)))]
            chat.insert(1, asks(self.draw(TEXTS)))
        else:
            message = self.sample(chat)
            if kind == "turn":
                chat.append(message)
                calls = message.get("tool_calls", ())
                chat += [result(self.draw(TEXTS), int(c["id"][-1])) for c in calls] or [asks(self.draw(TEXTS))]

    def sample(self, chat: list[Message]) -> Message:
        """One turn of the model's, checked; the message as the client keeps it, without reasoning."""
        prompt = self.conversation.open(chat)
        assert self.conversation.open(chat).token_ids.tolist() == prompt.token_ids.tolist()
        remembered = [read(self.full.get(id(m), m)) for m in chat]
        written = self.rendering.write([self.rendering.as_data(m) for m in remembered], None)
        decoded = self.family.tokenizer().decode(prompt.token_ids, keep_special=True)
        assert squashed(decoded) == squashed(self.rendering.as_said({"content": written})["content"])
        calls = self.draw(st.integers(0, 2))
        message = says(self.draw(WORDS), command="ls" if calls else "")
        if calls == 2:
            message["tool_calls"] += says("", command="cat", number=1)["tool_calls"]
        # of turns that look the same without their reasoning none could tell which a client means
        thought = self.thoughts.setdefault(f"{message['content'].strip()} {calls}", self.draw(WORDS).strip())
        if thought and self.family.template in THINKING:
            message["reasoning_content"] = thought
        said = as_sampled(self.family, message)
        if self.draw(st.booleans()) and len(said.token_ids) > 1:  # cut before its end
            said = Sampled(
                token_ids=said.token_ids[:-1],
                logprobs=said.logprobs[:-1],
                versions=said.versions[:-1],
                finish_reason="length",
            )
        self.conversation.record(prompt, said, message)
        self.seen.append((prompt.token_ids.tolist(), said))
        kept = {name: value for name, value in message.items() if name != "reasoning_content"}
        self.full[id(kept)] = message
        self.kept.append(kept)
        return kept


@pytest.mark.parametrize("name", TOLERANT)
@settings(max_examples=40, deadline=None)
@given(data=st.data(), num_acts=st.integers(1, 12))
def test_leaves_are_what_the_model_saw_and_each_token_is_trained_once(
    name: str, data: st.DataObject, num_acts: int
) -> None:
    agents = Agents(FAMILIES[name], data)
    agents.sample(agents.chats[0])
    for _ in range(num_acts):
        agents.act()
    tree, turns = agents.conversation.tree, agents.conversation.turns
    num_sampled = 0
    for turn, (prompt, said) in zip(turns, agents.seen, strict=True):
        assert tree.path_ids(turn.end - 1).tolist() == [*prompt, *said.token_ids]
        assert tree.token_ids[turn.start : turn.end].tolist() == said.token_ids.tolist()
        num_sampled += len(said.token_ids)
    assert int(tree.loss_mask.sum()) == num_sampled
    samples, left_out = make_samples([_trajectory(agents.conversation)], SETTINGS, 0, 512)
    assert not left_out
    assert sum(int((sample.weights > 0).sum()) for sample in samples) == num_sampled
    ends = [leaf + 1 for leaf in tree.branches.leaves()]
    assert set(ends) <= {turn.end for turn in turns}  # nothing is kept that no turn came of


SETTINGS = Settings.model_validate({"model": {"max_context": 100_000}, "learner": {"loss": {"length_threshold": 100}}})


def _trajectory(conversation: Conversation) -> Trajectory:
    tree = conversation.tree
    base = random_trajectory(np.random.default_rng(0), 10)
    fields = {name: getattr(base, name) for name in Trajectory.__struct_fields__}
    names = ("token_ids", "loss_mask", "logprobs", "versions", "segment_starts", "segment_parents")
    return Trajectory(**fields | {"turns": []} | {name: getattr(tree, name) for name in names})
