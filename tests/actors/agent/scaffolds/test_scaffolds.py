"""Scaffolds: the second one proves that they are pluggable."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.agent.chat import ChatTokenizer
from actors.agent.commands import Command, FormatError
from actors.agent.episode import Assignment, Limits
from actors.agent.loop import Agent
from actors.agent.scaffolds import make_scaffold
from actors.agent.scaffolds.json_calls import SCHEMAS, JsonCalls
from actors.policies.scripted import ScriptedPolicy, replay
from protocol.config import EpisodeSettings
from protocol.errors import ConfigError
from protocol.messages import Sampling
from tiny.model import build_tokenizer

QWEN_LIKE = (  # tools in the system message, results as a user turn, as Qwen2.5 and Qwen3 do
    "{% if tools %}<|im_start|>system\n# Tools{% for t in tools %}\n{{ t | tojson }}{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}{% if m.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ m.content }}\n"
    "</tool_response><|im_end|>\n{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_TOOL_ROLE = (
    "{% for m in messages %}{% if m.role not in ('system', 'user', 'assistant') %}{{ raise_exception('role') }}"
    "{% endif %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
)


def with_template(template: str, path: Path) -> ChatTokenizer:
    theirs = build_tokenizer()
    theirs.chat_template = template
    theirs.save_pretrained(path)
    return ChatTokenizer.load(path)


def call(name: str, **arguments: object) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


GLM = "<tool_call>{}\n<arg_key>command</arg_key>\n<arg_value>{}</arg_value>\n</tool_call>"


@pytest.fixture
def scaffold(tokenizer: ChatTokenizer) -> JsonCalls:
    return JsonCalls("full", tokenizer)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (call("shell", command="ls -l"), Command(tool="shell", body="ls -l")),
        (f"I look.\n{call('shell', command='a')}", Command(tool="shell", body="a")),
        (call("submit"), Command(tool="submit")),
        ('<tool_call>{"name": "submit"}</tool_call>', Command(tool="submit")),
        ('{"name": "shell", "parameters": {"command": "ls"}}', Command(tool="shell", body="ls")),
        ('{"name": "shell", "parameters": {"command": "\\ud800"}}', Command(tool="shell", body="?")),
        ('{"name": "shell", "arguments": "{\\"command\\": \\"ls\\"}"}', Command(tool="shell", body="ls")),
        ('[{"name": "shell", "arguments": {"command": "ls"}}]', Command(tool="shell", body="ls")),
        (GLM.format("shell", "ls -l\n"), Command(tool="shell", body="ls -l\n")),
        ("<tool_call>submit\n</tool_call>", Command(tool="submit")),
    ],
)
def test_calls_are_read(scaffold: JsonCalls, text: str, expected: Command) -> None:
    assert scaffold.parse(text) == expected


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "no tool call"),
        ("```command\nls\n```", "no tool call"),
        (call("open", path="x"), "no tool call"),
        (call("shell"), "no tool call"),
        (call("shell", command=1), "no tool call"),
        ("<tool_call>[1]</tool_call>", "no tool call"),
        ("<tool_call>3</tool_call>", "no tool call"),
        ('<tool_call>{"name": ["shell"]}</tool_call>', "no tool call"),
        ("<tool_call>{</tool_call>", "not JSON"),
        (f"<tool_call>{'[' * 100000}</tool_call>", "not JSON"),
        (call("submit") + call("submit"), r"several tool calls \(2\)"),
        ('[{"name": "submit"}, {"name": "submit"}]', r"several tool calls \(2\)"),
        ("[]", "no tool call"),
        ('{"name": "shell", "arguments": "ls"}', "not JSON"),
        ('{"name": "shell", "arguments": "3"}', "no tool call"),
        (GLM.format("open", "x"), "no tool call"),
        ("<tool_call>shell</tool_call>", "no tool call"),
    ],
)
def test_what_is_no_call_is_a_format_error(scaffold: JsonCalls, text: str, complaint: str) -> None:
    with pytest.raises(FormatError, match=complaint):
        scaffold.parse(text)


@given(st.text(max_size=100) | st.from_regex(r"<tool_call>\{.{0,60}\}</tool_call>"))
def test_any_text_is_a_command_or_a_format_error(tokenizer: ChatTokenizer, text: str) -> None:
    try:
        command = JsonCalls("brief", tokenizer).parse(text)
    except FormatError as error:
        assert str(error).startswith("[format error")
    else:
        assert command.tool in ("shell", "submit")


def test_tools_are_shown_by_the_template_or_by_the_system_message(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    shown = JsonCalls("full", with_template(QWEN_LIKE, tmp_path))
    assert shown.tools == SCHEMAS
    assert "tool_call" not in shown.open("issue")[0]["content"]
    for style in ("full", "brief"):
        explained = JsonCalls(style, tokenizer)
        assert explained.tools is None
        assert json.dumps(SCHEMAS[0]) in explained.open("issue")[0]["content"]
        assert explained.parse(explained.open("issue")[0]["content"]).body == "ls"


@pytest.mark.parametrize("kind", ["react", "json"])
def test_a_template_that_cannot_hold_the_conversation_is_told_at_once(tmp_path: Path, kind: str) -> None:
    one_turn = (
        "{% if messages | length > 1 %}{{ raise_exception('one turn only') }}{% endif %}{{ messages[0].content }}"
    )
    with pytest.raises(ConfigError, match="one turn only"):
        make_scaffold(EpisodeSettings(scaffold=kind), with_template(one_turn, tmp_path))


@pytest.mark.parametrize(
    ("template", "role", "opening"),
    [
        (QWEN_LIKE, "tool", "<|im_start|>user\n<tool_response>\n4\n</tool_response><|im_end|>\n"),
        (NO_TOOL_ROLE, "user", "<|im_start|>user\n4<|im_end|>\n"),
    ],
)
async def test_an_episode_in_the_models_own_format(
    tmp_path: Path, open_sandbox, template: str, role: str, opening: str
) -> None:
    tokenizer = with_template(template, tmp_path)
    settings = EpisodeSettings(scaffold="json", max_turn_tokens=400)
    scaffold = make_scaffold(settings, tokenizer)
    assert scaffold.answer_role == role
    turns = [call("shell", command="echo $((2+2)) | tee out"), "what now", call("submit")]
    agent = Agent(ScriptedPolicy(tokenizer, replay(turns)), tokenizer, scaffold, settings)
    sandbox = await open_sandbox({})
    limits = Limits(max_turns=5, max_context=5000, wall_time_s=20)
    assigned = Assignment(issue="count", episode_id="e", version=0, sampling=Sampling(), limits=limits)
    episode = await agent.run(assigned, sandbox)
    assert episode.end_reason == "submitted"
    assert [step.format_error for step in episode.steps] == [False, True, False]
    assert await sandbox.read("out") == b"4\n"
    assert opening in tokenizer.decode(episode.history.token_ids, keep_special=True)


XML_TAUGHT = QWEN_LIKE.replace(
    "{{ m.content }}<|im_end|>",
    "{{ m.content }}{% for c in m.tool_calls %}<tool_call>\n<function={{ c.function.name }}>\n"
    "{% for k, v in c.function.arguments.items() %}<parameter={{ k }}>\n{{ v }}\n</parameter>\n{% endfor %}"
    "</function>\n"
    "</tool_call>{% endfor %}<|im_end|>",
)
FOREIGN = XML_TAUGHT.replace("<tool_call>", "[CALL]").replace("<function=", "fn ")


def test_calls_in_the_form_that_the_template_teaches(tmp_path: Path) -> None:
    scaffold = JsonCalls("full", with_template(XML_TAUGHT, tmp_path / "xml"))
    turn = "<tool_call>\n<function=shell>\n<parameter=command>\nls -la\nwc x\n</parameter>\n</function>\n</tool_call>"
    assert scaffold.parse(turn) == Command(tool="shell", body="ls -la\nwc x")
    assert scaffold.parse(turn.replace("\n", "\r\n")) == Command(tool="shell", body="ls -la\nwc x")
    bare = turn.removeprefix("<tool_call>\n").removesuffix("\n</tool_call>")
    assert scaffold.parse(bare) == Command(tool="shell", body="ls -la\nwc x")
    assert scaffold.parse("<tool_call><function=submit></function></tool_call>") == Command(tool="submit")
    assert scaffold.parse(f"<think>{turn} or {call('submit')}</think>\n{call('submit')}") == Command(tool="submit")
    with pytest.raises(FormatError, match="no tool call"):
        scaffold.parse(f"<think>{turn}</think>\nI stop.")
    with pytest.raises(ConfigError, match="nothing here reads"):
        JsonCalls("full", with_template(FOREIGN, tmp_path / "foreign"))


def test_what_the_template_is_told(tmp_path: Path) -> None:
    from protocol.config.model import ModelSettings

    told = ModelSettings(chat_template_kwargs='{"enable_thinking": false}').template_values()
    with_template("{% if enable_thinking is false %}quiet{% else %}loud{% endif %}", tmp_path)
    chat = [{"role": "user", "content": "x"}]
    assert ChatTokenizer.load(tmp_path, told).render(chat) == "quiet"
    assert ChatTokenizer.load(tmp_path).render(chat) == "loud"
    for wrong in ("{", "[1]"):
        with pytest.raises(ValueError, match="JSON"):
            ModelSettings(chat_template_kwargs=wrong)


THINKS_ALWAYS = (  # as QwQ's and DeepSeek-R1's: the thought is begun for the model
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
THINKS_NEVER = THINKS_ALWAYS.replace("<think>\n", "<think>\n\n</think>\n\n")


@pytest.mark.parametrize("kind", ["react", "json"])
def test_a_thought_that_the_template_began_and_the_limit_cut_is_no_command(tmp_path: Path, kind: str) -> None:
    turn = "Should I\n```command\nrm -rf .\n```\n" + call("shell", command="rm -rf .") + "\nor rather"
    settings = EpisodeSettings(scaffold=kind)
    thinks = make_scaffold(settings, with_template(THINKS_ALWAYS, tmp_path / "always"))
    with pytest.raises(FormatError, match=r"no (command|tool call)"):
        thinks.parse(turn)
    assert thinks.parse(f"{turn}\n</think>\n```command\nls\n```\n{call('shell', command='ls')}").body == "ls"
    plain = make_scaffold(settings, with_template(THINKS_NEVER, tmp_path / "never"))
    assert plain.parse(turn).body == "rm -rf ."


@pytest.mark.parametrize(
    "turn",
    [
        "<tool_call>" + "\n" * 30_000,
        "<function=" + "\n" * 30_000,
        "<tool_call>shell" + "<arg_key>a</arg_key><arg_value>b</arg_value>" * 2_000 + "or</tool_call>",
        "<tool_call>shell<arg_key>a</arg_key>" + " " * 30_000 + "</tool_call>",
        "<function=shell>" + "<parameter=command>" * 20_000 + "</function>",
        "<function=shell>" * 20_000,
    ],
)
def test_a_turn_that_repeats_itself_is_read_at_once(scaffold: JsonCalls, turn: str) -> None:
    # every one of them took minutes and more, while all episodes of the process waited: the suite's limit would end it
    with pytest.raises(FormatError):
        scaffold.parse(turn)
