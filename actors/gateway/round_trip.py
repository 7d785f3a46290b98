"""Whether a model's chat template can carry tool calls: what it writes of them must be read back as it was."""

from __future__ import annotations

from typing import Any

from actors.agent.chat import ChatTokenizer
from actors.gateway.asks import function, object_of, tool_call
from actors.gateway.reading import Reader
from protocol.errors import ConfigError

_USER = {"role": "user", "content": "List the files."}
_SHAPE = {"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]}
_TOOLS = [function("shell", "Run a command.", _SHAPE)]
_COMMANDS = ("ls -la 'a b'", "cat setup.cfg")
_RESULT = "ResultOfTheCall"


async def why_no_tools(tokenizer: ChatTokenizer, reader: Reader) -> str:
    """Why tool calls cannot be served, in one line; empty where they can. Raises what `Reader.read` raises."""
    for commands in (_COMMANDS[:1], _COMMANDS):
        calls = [tool_call(f"call{i:05d}", "shell", {"command": command}) for i, command in enumerate(commands)]
        said: dict[str, Any] = {"role": "assistant", "content": "", "tool_calls": calls}
        try:
            prompt = tokenizer.render([_USER], tools=_TOOLS)
            written = tokenizer.render([_USER, said], tools=_TOOLS, generate=False)
            results = [
                {"role": "tool", "content": _RESULT, "tool_call_id": call["id"], "name": "shell"} for call in calls
            ]
            answered = tokenizer.render([_USER, said, *results], tools=_TOOLS)
        except ConfigError as error:
            return f"the chat template takes no tool calls: {error}"
        if "shell" not in prompt:
            return "the chat template does not show tools to the model; use an agent or a model without tool calls"
        if answered.count(_RESULT) != len(results):
            return "the chat template leaves out the results of tool calls"
        turn = written[_num_equal(prompt, written) :]
        reading = await reader.read(tokenizer.encode_rendered(prompt), tokenizer.encode_rendered(turn), _TOOLS)
        read = [(call.name, object_of(call.arguments)) for call in reading.calls]
        if read != [("shell", {"command": command}) for command in commands]:
            return (
                f"{len(commands)} tool calls that the chat template wrote were read back as {read}: "
                "name a parser that reads it in agent.tool_parser"
            )
    return ""


def _num_equal(left: str, right: str) -> int:
    return next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
