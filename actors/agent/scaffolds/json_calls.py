"""JSON tool calls in the model's own chat format, with the shell as the only tool besides `submit`."""

from __future__ import annotations

import json
import re
from typing import Any

from actors.agent.chat import Chat, ChatTokenizer
from actors.agent.commands import Command, FormatError
from actors.agent.prompts import PromptStyle, shell_chat
from protocol.errors import ConfigError


def _schema(name: str, description: str, parameters: dict[str, Any]) -> dict[str, Any]:
    shape = {"type": "object", "properties": parameters, "required": list(parameters)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": shape}}


SCHEMAS = [
    _schema(
        "shell",
        "Run a shell command in the repository's root. Every command starts there anew.",
        {"command": {"type": "string", "description": "The command, as for bash -c."}},
    ),
    _schema("submit", "End the work; your changes are judged as they are.", {}),
]

_CALL = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)
_NO_CALL = '[format error: no tool call. Call shell with {"command": ...}, or submit]'
_SEVERAL = "[format error: several tool calls ({count}). Call one tool, wait for its output]"


class JsonCalls:
    """`<tool_call>{"name": ..., "arguments": ...}</tool_call>` (Hermes, Qwen) or a bare object (Llama: `parameters`).

    Where the chat template does not show tools, their schemas are put in the system message.
    """

    def __init__(self, style: PromptStyle, tokenizer: ChatTokenizer) -> None:
        self._style: PromptStyle = style
        self.tools: list[dict[str, Any]] | None = SCHEMAS if _shows_tools(tokenizer) else None
        self.answer_role = "tool" if _takes_role(tokenizer, "tool") else "user"

    def open(self, issue: str) -> Chat:
        return shell_chat(issue, self._style, "" if self.tools else _explain())

    def parse(self, text: str) -> Command:
        calls = _CALL.findall(text)
        if not calls and text.strip().startswith("{"):
            calls = [text.strip()]
        if len(calls) != 1:
            raise FormatError(_SEVERAL.format(count=len(calls)) if calls else _NO_CALL)
        return _command(calls[0])


def _command(text: str) -> Command:
    try:
        call = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"[format error: the tool call is not JSON: {error}]") from None
    name = call.get("name") if isinstance(call, dict) else None
    arguments = call.get("arguments", call.get("parameters", {})) if name else None
    if name == "submit":
        return Command(tool="submit")
    if name != "shell" or not isinstance(arguments, dict) or not isinstance(arguments.get("command"), str):
        raise FormatError(_NO_CALL)
    # an escape such as \ud800 makes text that no encoding holds
    return Command(tool="shell", body=arguments["command"].encode("utf-8", "replace").decode())


def _explain() -> str:
    call = '<tool_call>\n{"name": "shell", "arguments": {"command": "ls"}}\n</tool_call>'
    return "\n\nTools:\n" + "\n".join(json.dumps(s) for s in SCHEMAS) + f"\n\nCall one like this:\n{call}"


def _shows_tools(tokenizer: ChatTokenizer) -> bool:
    chat = [{"role": "user", "content": "-"}]
    return tokenizer.render(chat, tools=SCHEMAS) != tokenizer.render(chat)


def _takes_role(tokenizer: ChatTokenizer, role: str) -> bool:
    try:
        tokenizer.encode_answer(role, "-", -1)
    except ConfigError:
        return False
    return True
