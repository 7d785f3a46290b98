"""Random agents in each API's words, several in one episode: they call tools, rewrite, compact, retry, run abreast, and
do not notice when the process that they ask is killed and another takes its place."""

from __future__ import annotations

import asyncio
import contextvars
import json
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Struct

from actors.episodes.episode_journal import EpisodeJournal
from actors.gateway.asks import Answer, Ask
from actors.gateway.bodies import Body
from actors.gateway.chat_completions import ChatCompletions
from actors.gateway.dialect import Dialect
from actors.gateway.messages import Messages
from actors.gateway.reading import HermesReader
from actors.gateway.responses import Responses
from actors.gateway.seat import Seat
from actors.gateway.turns import Terms, Turns
from actors.history.conversation import Conversation
from actors.history.matching import Message, read
from actors.history.rendering import Rendering
from actors.policy import Request, Sampled
from learner.objectives.samples import make_samples
from protocol.config import Settings
from protocol.messages import Sampling, Trajectory
from protocol.messages import Turn as WireTurn
from tests.actors.episodes.scripted_replay import make_lease
from tests.actors.history.families import FAMILIES, Family
from tests.actors.history.test_templates import TOOLS, says, squashed
from tests.learner.objectives.test_branching import alone, gradients, sample_loss
from tiny.model import build_model
from tiny.trajectories import random_trajectory

WORDS = st.sampled_from(["", "ok", "Done.", "a {b", 'it is "so"', "ünï 日本", "x\ny"])
TEXTS = st.one_of(st.sampled_from(["", "<|im_end|>", " a\nb ", '</think> "q"']), st.text('ab <>\n{"é', max_size=8))
SETTINGS = Settings.model_validate({"model": {"max_context": 100_000}, "learner": {"loss": {"length_threshold": 100}}})
CHOSEN: contextvars.ContextVar[Message] = contextvars.ContextVar("what the model says")


class Entry(Struct):
    """One message of a chat: given (text), or said by the model (as the API gave it, and as it was)."""

    role: str
    text: str = ""
    call_id: str = ""
    kept: list[dict[str, Any]] = []
    was: Message = {}


class ChatWords:
    dialect: Dialect = ChatCompletions()

    def body(self, chat: list[Entry]) -> dict[str, Any]:
        messages: list[dict[str, Any]] = []
        for entry in chat:
            if entry.kept:
                messages += entry.kept
            elif entry.role == "tool":
                messages.append({"role": "tool", "tool_call_id": entry.call_id, "content": entry.text})
            else:
                messages.append({"role": entry.role, "content": [{"type": "text", "text": entry.text}]})
        tools = [{**tool, "function": {**tool["function"]}} for tool in TOOLS]
        return {"messages": messages, "tools": tools}

    def take(self, answer: dict[str, Any], thoughts: bool) -> tuple[str, list[Any], list[dict[str, Any]]]:
        message = dict(answer["choices"][0]["message"])
        if not thoughts:
            message.pop("reasoning_content", None)
        calls = [(c["id"], c["function"]["name"], c["function"]["arguments"]) for c in message.get("tool_calls", ())]
        return message["content"] or "", calls, [message]


class ResponsesWords:
    dialect: Dialect = Responses()

    def body(self, chat: list[Entry]) -> dict[str, Any]:
        items: list[dict[str, Any]] = []
        for entry in chat[1:]:
            if entry.kept:
                items += entry.kept
            elif entry.role == "tool":
                items.append({"type": "function_call_output", "call_id": entry.call_id, "output": entry.text})
            else:
                items.append({"role": entry.role, "content": [{"type": "input_text", "text": entry.text}]})
        tools = [{"type": "function", **tool["function"]} for tool in TOOLS]
        return {"instructions": chat[0].text, "input": items, "tools": tools}

    def take(self, answer: dict[str, Any], thoughts: bool) -> tuple[str, list[Any], list[dict[str, Any]]]:
        items = [item for item in answer["output"] if thoughts or item["type"] != "reasoning"]
        text = "".join(part["text"] for item in items if item["type"] == "message" for part in item["content"])
        calls = [(i["call_id"], i["name"], i["arguments"]) for i in items if i["type"] == "function_call"]
        return text, calls, items


class MessagesWords:
    dialect: Dialect = Messages()

    def body(self, chat: list[Entry]) -> dict[str, Any]:
        messages: list[dict[str, Any]] = []
        for entry in chat[1:]:
            if entry.kept:
                messages.append({"role": "assistant", "content": entry.kept})
            elif entry.role == "tool":
                block = {"type": "tool_result", "tool_use_id": entry.call_id, "content": entry.text}
                if messages and messages[-1].get("results"):
                    messages[-1]["content"].append(block)
                else:
                    messages.append({"role": "user", "content": [block], "results": True})
            else:
                messages.append({"role": "user", "content": [{"type": "text", "text": entry.text}]})
        tools = [{"name": t["function"]["name"], "input_schema": t["function"]["parameters"]} for t in TOOLS]
        return {"system": chat[0].text, "messages": messages, "tools": tools, "max_tokens": 1000}

    def take(self, answer: dict[str, Any], thoughts: bool) -> tuple[str, list[Any], list[dict[str, Any]]]:
        blocks = [block for block in answer["content"] if thoughts or block["type"] != "thinking"]
        text = "".join(block["text"] for block in blocks if block["type"] == "text")
        calls = [(b["id"], b["name"], json.dumps(b["input"])) for b in blocks if b["type"] == "tool_use"]
        return text, calls, blocks


class Saying:
    """A policy that samples what the caller has chosen, and notes after what."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self.seen: list[tuple[list[int], Sampled]] = []

    async def generate(self, request: Request) -> Sampled:
        message = CHOSEN.get()
        await asyncio.sleep(0)
        ids = self.family.tokenizer().encode_rendered(self.family.sampled(message))
        cut = bool(message.get("cut")) and len(ids) > 1  # an engine samples at least one token
        ids = ids[: len(ids) - cut]
        sampled = Sampled(
            token_ids=ids,
            logprobs=np.full(len(ids), -4, np.float32),
            versions=np.zeros(len(ids), np.int32),
            finish_reason="length" if cut else "stop",
        )
        self.seen.append((request.token_ids.tolist(), sampled))
        return sampled

    async def close(self) -> None:
        """Nothing to drop."""


def remembered(chat: list[Entry]) -> list[tuple[str, str, Message]]:
    """What its next request will say, whatever the API."""
    return [(entry.role, entry.text, entry.was) for entry in chat]


class Agents:
    """Several agents of one episode, each in an API's words, with its chat as it remembers it."""

    def __init__(self, name: str, data: st.DataObject) -> None:
        self.family, self.draw = FAMILIES[name], data.draw
        tokenizer = self.family.tokenizer()
        self.rendering = Rendering(tokenizer)
        self.policy = Saying(self.family)
        self.thoughts: dict[str, str] = {}
        self.chats: list[tuple[Any, list[Entry]]] = []
        self.folder = tempfile.TemporaryDirectory()
        self.journal = EpisodeJournal.begin(Path(self.folder.name), make_lease(0, "task"), 0.0, "recipe")
        self.start()

    def sit_down(self) -> None:
        """At a gateway, where the journal says."""
        terms = Terms(
            episode_id="e",
            version=0,
            sampling=Sampling(),
            max_turns=1000,
            max_context=100_000,
            max_turn_tokens=1000,
            wall_time_s=600.0,
        )
        tokenizer = self.family.tokenizer()
        self.conversation = Conversation(tokenizer)
        turns = Turns(terms, self.conversation, self.policy, tokenizer, HermesReader(tokenizer), self.journal)
        self.seat = Seat(turns)

    def change_process(self) -> None:
        """It is killed between two requests, and the next is as far as it was."""
        former, before = self.seat.turns, self.conversation
        (path,) = Path(self.folder.name).iterdir()
        read = EpisodeJournal.read(path, "recipe")
        assert read is not None
        self.journal.leave()
        self.journal = read
        self.sit_down()
        for name in ("token_ids", "loss_mask", "logprobs", "versions", "segment_starts", "segment_parents"):
            assert np.array_equal(getattr(before.tree, name), getattr(self.conversation.tree, name))
        assert before.drift == self.conversation.drift and former.done == self.seat.turns.done
        assert former._kept == self.seat.turns._kept and former._prefix.salt == self.seat.turns._prefix.salt

    def start(self) -> None:
        """One more agent."""
        words = self.draw(st.sampled_from([ChatWords(), ResponsesWords(), MessagesWords()]))
        system = Entry("system", f"agent {self.draw(st.integers(0, 2))}")
        self.chats.append((words, [system, Entry("user", self.draw(TEXTS))]))

    async def act(self) -> None:
        """One thing that an agent does, or two at once."""
        words, chat = self.draw(st.sampled_from(self.chats))
        kinds = ["turn", "turn", "turn", "again", "joined", "beside", "edit", "compact", "start", "killed"]
        match self.draw(st.sampled_from(kinds)):
            case "start":
                self.start()
            case "killed":
                self.change_process()
            case "edit":
                entry = self.draw(st.sampled_from([entry for entry in chat[1:] if not entry.kept]))
                entry.text = self.draw(TEXTS)
            case "compact":
                del chat[1 : self.draw(st.integers(1, len(chat)))]
                chat.insert(1, Entry("user", self.draw(TEXTS)))
            case "again":  # it does not like the answer, and asks the same once more
                await self.turn(words, chat)
            case "joined":  # a client that thinks its request was lost
                await self.turn(words, chat, times=2)
            case "beside" if others := [each for each in self.chats if remembered(each[1]) != remembered(chat)]:
                other = self.draw(st.sampled_from(others))  # the same at the same time is taken for a retry
                results = await asyncio.gather(self.turn(words, chat), self.turn(*other))
                for (_, each), said in zip(((words, chat), other), results, strict=True):
                    self.go_on(each, said)
            case _:
                self.go_on(chat, await self.turn(words, chat))

    def go_on(self, chat: list[Entry], said: tuple[Entry, list[Any]]) -> None:
        """The agent keeps the turn and answers it."""
        entry, calls = said
        chat.append(entry)
        chat += [Entry("tool", self.draw(TEXTS), call_id) for call_id, *_ in calls] or [Entry("user", self.draw(TEXTS))]

    def turn(self, words: Any, chat: list[Entry], times: int = 1) -> Coroutine[Any, Any, tuple[Entry, list[Any]]]:
        """A request. What the model will say is drawn now, and it is asked later."""
        num_calls = self.draw(st.integers(0, 2))
        message = says(self.draw(WORDS), command="ls" if num_calls else "")
        if num_calls == 2:
            message["tool_calls"] += says("", command="cat", number=1)["tool_calls"]
        # of turns that look the same without their reasoning none could tell which a client means
        thought = self.thoughts.setdefault(f"{message['content']} {num_calls}", self.draw(WORDS))
        if thought and self.family.template == "qwen3":
            message["reasoning_content"] = thought
        message["cut"] = self.draw(st.booleans())
        body = words.body(chat) | {"model": "m"}
        keeps_thoughts = self.draw(st.booleans())
        self.check_prompt(words.dialect, body, chat)
        return self._ask(words, body, message, keeps_thoughts, times)

    async def _ask(
        self, words: Any, body: dict[str, Any], message: Message, keeps_thoughts: bool, times: int
    ) -> tuple[Entry, list[Any]]:
        CHOSEN.set(message)
        ask = words.dialect.read(Body.parse(msgspec.json.encode(body)))
        answers: list[Answer] = await asyncio.gather(*(self.seat.answer(ask) for _ in range(times)))
        assert len({id(answer) for answer in answers}) == 1
        self.seat.delivered(ask)
        written = json.loads(msgspec.json.encode(words.dialect.write(ask, answers[0])))
        text, calls, kept = words.take(written, keeps_thoughts)
        assert text == message["content"]
        assert [(name, json.loads(arguments)) for _, name, arguments in calls] == [
            (call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls", ())
        ]
        was = {name: value for name, value in message.items() if name != "cut"}
        return Entry("assistant", kept=kept, was=was), calls

    def check_prompt(self, dialect: Dialect, body: dict[str, Any], chat: list[Entry]) -> None:
        """What the model will be shown is what the template writes of what the agent remembers and the model said."""
        ask: Ask = dialect.read(Body.parse(msgspec.json.encode(body)))
        prompt = self.conversation.open(ask.messages, ask.tools)
        shown: list[Message] = [
            entry.was if entry.kept else {"role": entry.role, "content": entry.text, "tool_call_id": entry.call_id}
            for entry in chat
        ]
        data = [self.rendering.as_data(read(message)) for message in shown]
        written = self.rendering.as_said(
            {"content": self.rendering.write(data, self.rendering.tools_as_data(ask.tools))}
        )["content"]
        decoded = self.family.tokenizer().decode(prompt.token_ids, keep_special=True)
        assert squashed(decoded) == squashed(written)

    def trajectory(self, member: int) -> Trajectory:
        """The episode as the learner gets it."""
        tree = self.conversation.tree
        base = random_trajectory(np.random.default_rng(member), 10, resolved=member == 0, member=member)
        turns = [WireTurn(start=turn.start, end=turn.end) for turn in self.conversation.turns]
        names = ("token_ids", "loss_mask", "logprobs", "versions", "segment_starts", "segment_parents")
        arrays = {name: getattr(tree, name) for name in names}
        return msgspec.structs.replace(base, turns=turns, **arrays)


async def play(agents: Agents, num_acts: int) -> None:
    with agents.folder:
        agents.sit_down()
        await agents.turn(*agents.chats[0])
        for _ in range(num_acts):
            await agents.act()
        await agents.seat.close()
        agents.journal.leave()


def num_sampled(agents: Agents) -> int:
    return sum(len(said.token_ids) for _, said in agents.policy.seen)


@pytest.mark.parametrize("name", ["qwen2.5", "qwen3"])
@settings(max_examples=20, deadline=None)
@given(data=st.data(), num_acts=st.integers(1, 10))
def test_leaves_are_what_was_seen_and_each_sampled_token_is_trained_once(
    name: str, data: st.DataObject, num_acts: int
) -> None:
    agents = Agents(name, data)
    asyncio.run(play(agents, num_acts))
    tree, turns = agents.conversation.tree, agents.conversation.turns
    seen = sorted([*prompt, *said.token_ids.tolist()] for prompt, said in agents.policy.seen)
    assert sorted(tree.path_ids(turn.end - 1).tolist() for turn in turns) == seen
    assert int(tree.loss_mask.sum()) == num_sampled(agents)
    samples, left_out = make_samples([agents.trajectory(0)], SETTINGS, 0, 100_000)
    assert not left_out
    assert sum(int((sample.weights > 0).sum()) for sample in samples) == num_sampled(agents)
    assert {leaf + 1 for leaf in tree.branches.leaves()} <= {turn.end for turn in turns}
    assert len(turns) == len(agents.policy.seen)


@settings(max_examples=3, deadline=None)
@given(data=st.data())
def test_the_gradient_of_an_episode_is_the_sum_over_its_turns_alone(data: st.DataObject) -> None:
    group = []
    for member in range(2):
        agents = Agents("qwen3", data)
        asyncio.run(play(agents, 4))
        group.append(agents.trajectory(member))
    vocabulary = 1 + max(int(trajectory.token_ids.max()) for trajectory in group)
    policy = build_model(vocabulary, hidden=32, heads=1, kv_heads=1, layers=1).double()
    samples, left_out = make_samples(group, SETTINGS, 0, vocabulary)
    assert not left_out
    got = sum(sample_loss(policy, sample, SETTINGS) for sample in samples)
    assert isinstance(got, torch.Tensor)
    expected = sum(alone(policy, each, advantage) for each, advantage in zip(group, (1.0, -1.0), strict=True))
    assert isinstance(expected, torch.Tensor)
    for left, right in zip(gradients(policy, got), gradients(policy, expected), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-5 * max(1.0, float(np.abs(right).max())))
