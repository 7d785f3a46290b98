"""JSON tool calls in the model's own chat format, with the shell as the only tool besides `submit`."""

from __future__ import annotations

import json
import re
from typing import Any

from actors.agent.chat import Chat, ChatTokenizer
from actors.agent.commands import Command, FormatError, spoken
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

_CALL = re.compile("<tool_call>")
_FUNCTION = re.compile(r"<function=([^<>]*)>")
_PARAMETER = re.compile(r"<parameter=\s*([\w.-]+)\s*>\n?")
_NAME = re.compile(r"[\w.-]+")
_ARGUMENT = re.compile(
    r"\s*<arg_key>\s*([\w.-]+)\s*</arg_key>\s*<arg_value>((?:(?!</arg_value>).)*)</arg_value>", re.DOTALL
)
_PROBE = "ls -la shown here"
_NO_CALL = '[format error: no tool call. Call shell with {"command": ...}, or submit]'
_SEVERAL = "[format error: several tool calls ({count}). Call one tool, wait for its output]"


class JsonCalls:
    """`<tool_call>{"name": ..., "arguments": ...}</tool_call>` (Hermes, Qwen), a bare object (Llama: `parameters`) or
    list (Mistral), `<function=shell><parameter=command>...` (Qwen's coders), `<tool_call>shell<arg_key>...` (GLM).

    Where the chat template does not show tools, their schemas are put in the system message. Raises `ConfigError` where
    it writes calls in a form that is not read here: a model learns from its template.
    """

    def __init__(self, style: PromptStyle, tokenizer: ChatTokenizer) -> None:
        self._style: PromptStyle = style
        self._opens_thought = tokenizer.opens_thought
        self.tools: list[dict[str, Any]] | None = SCHEMAS if _shows_tools(tokenizer) else None
        if self.tools and (form := _unread_form(self, tokenizer)):
            raise ConfigError(
                f"episode.scaffold=json: the chat template writes tool calls as {form!r}, which nothing here reads;"
                " take episode.scaffold=react, or a model whose template writes <tool_call>",
                kind="scaffold",
            )
        self.answer_role = "tool" if _takes_role(tokenizer, "tool") else "user"

    def open(self, issue: str) -> Chat:
        return shell_chat(issue, self._style, "" if self.tools else _explain())

    def parse(self, text: str) -> Command:
        return self._read(spoken(text, begun=self._opens_thought))

    def _read(self, text: str) -> Command:
        calls = [inside for _, inside in _elements(text, _CALL, "</tool_call>")]
        if not calls:  # alone, as Qwen's coders write it, too
            functions = _elements(text, _FUNCTION, "</function>")
            calls = [f"{opening[0]}{inside}</function>" for opening, inside in functions]
        if not calls and text.strip().startswith(("{", "[")):
            calls = [text.strip()]
        if len(calls) != 1:
            raise FormatError(_SEVERAL.format(count=len(calls)) if calls else _NO_CALL)
        return _command(calls[0].strip())


def _elements(text: str, opening: re.Pattern[str], closing: str) -> list[tuple[re.Match[str], str]]:
    """What stands between an opening and the closing that comes next, one after another. One expression for both would
    try every way to part a turn of line ends among its pieces, for minutes, while all episodes of a process wait."""
    found: list[tuple[re.Match[str], str]] = []
    at = 0
    while (match := opening.search(text, at)) and (end := text.find(closing, match.end())) >= 0:
        found.append((match, text[match.end() : end]))
        at = end + len(closing)
    return found


def _command(text: str) -> Command:
    if (function := _FUNCTION.match(text)) and text.endswith("</function>"):
        inside = text[function.end() : -len("</function>")]
        parameters = _elements(inside, _PARAMETER, "</parameter>")
        arguments = {opening[1]: value.removesuffix("\n") for opening, value in parameters}
        return _called({"name": function[1].strip(), "arguments": arguments})
    if (tagged := _tagged(text)) is not None:
        return _called(tagged)
    call = _decoded(text)
    if isinstance(call, list):
        if len(call) > 1:
            raise FormatError(_SEVERAL.format(count=len(call)))
        call = call[0] if call else None
    return _called(call)


def _tagged(text: str) -> dict[str, Any] | None:
    """A call as GLM writes it, `name<arg_key>...</arg_key><arg_value>...</arg_value>`."""
    name = text.partition("<arg_key>")[0]
    if not _NAME.fullmatch(name.strip()):
        return None
    arguments: dict[str, str] = {}
    at = len(name)
    while match := _ARGUMENT.match(text, at):
        arguments[match[1]] = match[2]
        at = match.end()
    return None if text[at:].strip() else {"name": name.strip(), "arguments": arguments}


def _decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"[format error: the tool call is not JSON: {error}]") from None


def _called(call: Any) -> Command:
    name = call.get("name") if isinstance(call, dict) else None
    arguments = call.get("arguments", call.get("parameters", {})) if name else None
    if name == "submit":
        return Command(tool="submit")
    if isinstance(arguments, str):  # JSON within JSON, as the API has it
        arguments = _decoded(arguments)
    if name != "shell" or not isinstance(arguments, dict) or not isinstance(arguments.get("command"), str):
        raise FormatError(_NO_CALL)
    # an escape such as \ud800 makes text that no encoding holds
    return Command(tool="shell", body=arguments["command"].encode("utf-8", "replace").decode())


def _explain() -> str:
    call = '<tool_call>\n{"name": "shell", "arguments": {"command": "ls"}}\n</tool_call>'
    return "\n\nTools:\n" + "\n".join(json.dumps(s) for s in SCHEMAS) + f"\n\nCall one like this:\n{call}"


def _unread_form(scaffold: JsonCalls, tokenizer: ChatTokenizer) -> str:
    """How the template writes a call, where `parse` does not get the command back from it; else empty."""
    asked = {"role": "user", "content": "-"}
    written = ""
    for arguments in ({"command": _PROBE}, json.dumps({"command": _PROBE})):
        function = {"name": "shell", "arguments": arguments}
        calls = [{"id": "x", "type": "function", "function": function}]
        said = {"role": "assistant", "content": "", "tool_calls": calls}
        try:
            before = tokenizer.render([asked], tools=SCHEMAS, generate=True)
            text = tokenizer.render([asked, said], tools=SCHEMAS, generate=False)
        except ConfigError:
            continue
        written = text.removeprefix(before) if text.startswith(before) else text.rpartition("shown here")[0][-200:]
        if _PROBE not in text:
            return ""  # it shows no calls of the past, so it teaches none by them
        for control in tokenizer.controls:  # as a turn is decoded
            written = written.replace(control, "")
        try:
            if scaffold._read(spoken(written)).body == _PROBE:
                return ""
        except FormatError:
            continue
    return written.strip()[:120]


def _shows_tools(tokenizer: ChatTokenizer) -> bool:
    chat = [{"role": "user", "content": "-"}]
    return tokenizer.render(chat, tools=SCHEMAS) != tokenizer.render(chat)


def _takes_role(tokenizer: ChatTokenizer, role: str) -> bool:
    try:
        tokenizer.encode_answer(role, "-", -1)
    except ConfigError:
        return False
    return True
