"""Whether a model's chat template can carry tool calls: what it writes of them must be read back as it was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from actors.agent.chat import ChatTokenizer
from actors.gateway.asks import function, object_of, tool_call
from actors.gateway.reading import Reader
from actors.history.rendering import Rendering
from protocol.errors import ConfigError

_USER = {"role": "user", "content": "List the files."}
_SHAPE = {"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]}
_TOOLS = [function("shell", "Run a command.", _SHAPE)]
_COMMANDS = ("ls -la 'a b'", "cat setup.cfg")
_RESULT = "ResultOfTheCall"


class ToolCarrying(NamedTuple):
    """What a template can carry."""

    why_not: str = ""  # one line; empty: it carries tool calls
    most_calls: int | None = None  # of one turn; None: any number


async def tools_carried(tokenizer: ChatTokenizer, reader: Reader) -> ToolCarrying:
    """What comes back of tool calls that the chat template writes. Raises what `Reader.read` raises."""
    why_not = await _why_not(tokenizer, reader, _COMMANDS[:1])
    if why_not:
        return ToolCarrying(why_not)
    several = await _why_not(tokenizer, reader, _COMMANDS)  # Llama's template refuses more than one
    return ToolCarrying(most_calls=1 if several else None)


async def _why_not(tokenizer: ChatTokenizer, reader: Reader, commands: Sequence[str]) -> str:
    calls = [tool_call(f"call{i:05d}", "shell", {"command": command}) for i, command in enumerate(commands)]
    said: dict[str, Any] = {"role": "assistant", "content": "", "tool_calls": calls}
    result = {"role": "tool", "content": _RESULT, "name": "shell"}
    results = [result | {"tool_call_id": call["id"]} for call in calls]
    try:
        rendering = Rendering(tokenizer)  # as conversations are
        prompt = rendering.write([_USER], _TOOLS)
        written = rendering.write([_USER, said], _TOOLS, generate=False)
        answered = rendering.write([_USER, said, *results], _TOOLS)
    except ConfigError as error:
        return f"the chat template takes no tool calls: {error}"
    if "shell" not in prompt:
        return "the chat template does not show tools to the model; use an agent or a model without tool calls"
    if answered.count(_RESULT) != len(results):
        return "the chat template leaves out the results of tool calls"
    turn = written[_num_equal(prompt, written) :]
    reading = await reader.read(tokenizer.encode_rendered(prompt), tokenizer.encode_rendered(turn), _TOOLS)
    read = [(call.name, object_of(call.arguments)) for call in reading.calls]
    if read == [("shell", {"command": command}) for command in commands]:
        return ""
    return (
        f"{len(commands)} tool calls that the chat template wrote were read back as {read}: "
        "name a parser that reads it in agent.tool_parser"
    )


def _num_equal(left: str, right: str) -> int:
    return next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
