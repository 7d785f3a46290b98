"""What goes into a request of OpenAI's Responses API, read into messages: items that belong to one turn become one."""

from __future__ import annotations

import base64
import binascii
from typing import Any

from actors.gateway.asks import function, tool_call
from actors.gateway.bodies import MOST_TOOLS, Body
from actors.gateway.chat_completions import text_of

JOINT = "__"  # between a namespace and a name
INPUT = "input"  # the one argument by which a tool of free text is called
_SEALED = "plain:"  # before reasoning that a client keeps for us without reading it


class Items:
    """The messages of a list of items."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self._turn: dict[str, Any] | None = None  # of the assistant, still growing

    def add(self, item: Body) -> None:
        """The next item. Raises `Refusal`."""
        match item.text("type", "message"):
            case "message":
                self._message(item)
            case "reasoning":
                self._grow()["reasoning_content"] = _reasoning(item)
            case "function_call":
                name = _flat(item.text("namespace", ""), item.text("name"))
                self._call(tool_call(item.text("call_id"), name, item.text("arguments", "")))
            case "custom_tool_call":
                self._call(tool_call(item.text("call_id"), item.text("name"), {INPUT: item.text(INPUT, "")}))
            case "function_call_output" | "custom_tool_call_output":
                self._other({"role": "tool", "content": text_of(item, "output"), "tool_call_id": item.text("call_id")})
            case kind:
                raise item.refuse("type", f"items of type {kind[:100]} are not served")

    def _message(self, item: Body) -> None:
        role, text = item.text("role"), text_of(item, "content")
        if role == "assistant":
            turn = self._grow()
            turn["content"] = f"{turn['content']}\n{text}" if turn["content"] else text
        elif role in ("system", "developer", "user"):
            self._other({"role": "user" if role == "user" else "system", "content": text})
        else:
            raise item.refuse("role", f"expected system, developer, user or assistant, got {role[:100]!r}")

    def _call(self, call: dict[str, Any]) -> None:
        self._grow().setdefault("tool_calls", []).append(call)

    def _grow(self) -> dict[str, Any]:
        if self._turn is None:
            self._turn = {"role": "assistant", "content": ""}
            self.messages.append(self._turn)
        return self._turn

    def _other(self, message: dict[str, Any]) -> None:
        self._turn = None
        self.messages.append(message)


def read_input(body: Body) -> list[dict[str, Any]]:
    """The messages of a request: `instructions`, then `input`."""
    instructions = body.text("instructions", "")
    messages = [{"role": "system", "content": instructions}] if instructions else []
    if isinstance(body.take("input"), str):
        return [*messages, {"role": "user", "content": body.text("input")}]
    items = Items()
    for item in body.objects("input"):
        items.add(item)
    return messages + items.messages


def read_tools(body: Body) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The tools as functions, and which of them are of free text (`custom`) or of a namespace (`spaces`)."""
    tools: list[dict[str, Any]] = []
    custom: list[str] = []
    spaces: dict[str, list[str]] = {}
    for tool in body.objects("tools", MOST_TOOLS):
        match tool.text("type"):
            case "function":
                tools.append(function(tool.text("name"), tool.take("description"), tool.take("parameters")))
            case "custom":
                custom.append(tool.text("name"))
                tools.append(_free_text(tool))
            case "namespace":
                for inner in tool.objects("tools", MOST_TOOLS):
                    if inner.text("type") != "function":
                        raise inner.refuse("type", "only functions are served in a namespace")
                    name = _flat(tool.text("name"), inner.text("name"))
                    spaces[name] = [tool.text("name"), inner.text("name")]
                    tools.append(function(name, inner.take("description"), inner.take("parameters")))
            case kind:
                raise tool.refuse("type", f"nothing here runs the tool {kind[:100]}; turn it off in the agent")
    return tools, {"custom": custom, "spaces": spaces}


def seal(reasoning: str) -> str:
    """Reasoning as a client carries it back unread."""
    return base64.b64encode(f"{_SEALED}{reasoning}".encode()).decode()


def _unseal(sealed: str) -> str:
    try:
        text = base64.b64decode(sealed, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return ""
    return text.removeprefix(_SEALED) if text.startswith(_SEALED) else ""


def _reasoning(item: Body) -> str:
    for name in ("content", "summary"):
        parts = [part.text("text", "") for part in item.objects(name)]
        if any(parts):
            return "\n".join(parts)
    return _unseal(item.text("encrypted_content", ""))


def _flat(space: str, name: str) -> str:
    return f"{space}{JOINT}{name}" if space else name


def _free_text(tool: Body) -> dict[str, Any]:
    """A tool whose input is free text, as a function of one string. A grammar is told, not forced."""
    description = tool.text("description", "")
    form = tool.object("format")
    if form is not None and form.take("definition") is not None:
        description += f"\nThe input follows this grammar:\n{form.text('definition')}"
    shape = {"type": "object", "properties": {INPUT: {"type": "string"}}, "required": [INPUT]}
    return function(tool.text("name"), description, shape)
