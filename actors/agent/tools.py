"""The tool set: names, usages and handlers. Prompts that teach the tools are made from the same table."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from msgspec import Struct

from actors.agent.commands import Command
from actors.agent.files import FileTools, OpenFile, ToolError, split_replacement
from actors.agent.find import FindTools
from protocol.config import EpisodeSettings
from sandbox.base import ExecResult, Sandbox

_SHELL = 'if command -v bash >/dev/null 2>&1; then exec bash -c "$1"; else exec sh -c "$1"; fi'
_ENVIRONMENT = {"PAGER": "cat", "GIT_PAGER": "cat", "TERM": "dumb", "PYTHONDONTWRITEBYTECODE": "1"}
_IMAGE_ENVIRONMENT = {"BASH_ENV": "/root/.bashrc"}  # where the images of public datasets activate their Python


class Outcome(Struct, frozen=True, kw_only=True):
    """What a command gave. `submitted`: the agent says that it is done."""

    text: str
    submitted: bool = False


class ToolHelp(Struct, frozen=True, kw_only=True):
    """How a tool is called and what it does, for prompts and for usage errors."""

    usage: str
    purpose: str


TOOLS: dict[str, ToolHelp] = {
    "shell": ToolHelp(
        usage="COMMAND",
        purpose="whatever begins otherwise is a shell command; each starts in the repository's root, with a time limit",
    ),
    "open": ToolHelp(usage="open PATH [LINE]", purpose="shows a window of the file, with line numbers"),
    "goto": ToolHelp(usage="goto LINE", purpose="moves the window of the open file to a line"),
    "scroll": ToolHelp(usage="scroll up|down", purpose="moves the window of the open file"),
    "create": ToolHelp(usage="create PATH\nTEXT", purpose="writes a new file; the text starts on the next line"),
    "edit": ToolHelp(
        usage="edit [PATH] START:END\nTEXT",
        purpose="replaces lines START to END of the file (default: the open one) by the text, which starts on the next "
        "line; without text the lines are deleted; END = START - 1 inserts before START",
    ),
    "replace": ToolHelp(
        usage="replace PATH 'OLD' 'NEW'",
        purpose="replaces the one place where OLD stands; for whole lines write only `replace PATH`, and on the next "
        "lines <<<<<<<, the old lines, =======, the new lines, >>>>>>>, each mark on a line of its own",
    ),
    "search_file": ToolHelp(
        usage="search_file WORD [PATH]", purpose="lines of a file (default: the open one) that hold the text"
    ),
    "search_dir": ToolHelp(usage="search_dir WORD [DIRECTORY]", purpose="lines of all files that hold the text"),
    "find_file": ToolHelp(usage="find_file PATTERN [DIRECTORY]", purpose="files whose name fits, e.g. *.py"),
    "submit": ToolHelp(usage="submit", purpose="ends the work; your changes are judged as they are"),
}


_ONLY_READ = frozenset({"open", "goto", "scroll", "search_file", "search_dir", "find_file"})
INTERRUPTED = "[interrupted: the result of this command is not known]"
"""Answer to a command that another process had begun when it died: all, some or nothing of its work may be done."""


class Toolbox:
    """The tools of one episode, working inside its sandbox.

    An agent's mistake is an answer; a failure of the sandbox itself is a `SandboxError`.
    """

    def __init__(self, sandbox: Sandbox, settings: EpisodeSettings) -> None:
        self._sandbox = sandbox
        self._settings = settings
        self._environment = _ENVIRONMENT | (_IMAGE_ENVIRONMENT if sandbox.spec.image is not None else {})
        self._files = FileTools(
            sandbox,
            window=settings.window_lines,
            context=settings.edit_context_lines,
            max_chars=settings.max_observation_chars,
        )
        self._find = FindTools(sandbox, self._files, settings.command_timeout_s)
        self._handlers: dict[str, Callable[[Command], Awaitable[str]]] = {
            "open": self._open,
            "goto": self._goto,
            "scroll": self._scroll,
            "create": self._create,
            "edit": self._edit,
            "replace": self._replace,
            "search_file": self._search_file,
            "search_dir": self._search_dir,
            "find_file": self._find_file,
        }

    @property
    def state(self) -> OpenFile | None:
        """See `FileTools.state`."""
        return self._files.state

    @state.setter
    def state(self, state: OpenFile | None) -> None:
        self._files.state = state

    async def run(self, command: Command, timeout_s: float, *, is_known: bool = True) -> Outcome:
        """Run one command; its answer is at most `max_observation_chars` long, plus a line that says what was cut.

        Args:
            timeout_s: what is left of the episode; a command is given no more.
            is_known: that nobody has begun it before; else it is not run if it might change something.
        """
        if command.tool == "submit":
            return Outcome(text="", submitted=True)
        if not is_known and command.tool not in _ONLY_READ:
            return Outcome(text=INTERRUPTED)
        try:
            if command.tool == "shell":
                text = await self._shell(command.body, min(timeout_s, self._settings.command_timeout_s))
            else:
                _refuse_nul(*command.args)
                text = await self._handlers[command.tool](command)
        except ToolError as error:
            text = str(error)
        readable = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        return Outcome(text=shorten_middle(readable, self._settings.max_observation_chars))

    async def _shell(self, text: str, timeout_s: float) -> str:
        _refuse_nul(text)
        result = await self._sandbox.exec(
            ["sh", "-c", _SHELL, "sh", text],
            timeout=timeout_s,
            env=self._environment,
            max_output=max(4 * self._settings.max_observation_chars, 1024),
        )
        return describe(result)

    async def _open(self, command: Command) -> str:
        path, line = _take(command, 1, 2, default="1")
        return await self._files.open(path, _number(command, line))

    async def _goto(self, command: Command) -> str:
        return await self._files.goto(_number(command, _take(command, 1, 1)[0]))

    async def _scroll(self, command: Command) -> str:
        (direction,) = _take(command, 0, 1, default="down")
        if direction not in ("up", "down"):
            raise _usage(command)
        return await self._files.scroll(direction)

    async def _create(self, command: Command) -> str:
        return await self._files.create(_take(command, 1, 1)[0], command.body)

    async def _edit(self, command: Command) -> str:
        first, second = _take(command, 1, 2, default="")
        path, lines = (first, second) if second else (self._files.need_open(), first)
        start, _, end = lines.partition(":")
        return await self._files.edit(path, _number(command, start), _number(command, end or start), command.body)

    async def _replace(self, command: Command) -> str:
        if len(command.args) == 1:
            return await self._files.replace(command.args[0], *split_replacement(command.body))
        return await self._files.replace(*_take(command, 3, 3))

    async def _search_file(self, command: Command) -> str:
        word, path = _take(command, 1, 2, default="")
        return await self._find.search_file(word, path or self._files.need_open())

    async def _search_dir(self, command: Command) -> str:
        word, directory = _take(command, 1, 2, default=".")
        return await self._find.search_dir(word, directory)

    async def _find_file(self, command: Command) -> str:
        pattern, directory = _take(command, 1, 2, default=".")
        return await self._find.find_file(pattern, directory)


def describe(result: ExecResult) -> str:
    """A command's output as the agent reads it: the text, then what is unusual about its end."""
    notes = []
    if result.timed_out:
        notes.append(f"[killed after {result.duration_s:.0f} s]")
    elif result.exit_code:
        notes.append(f"[exit status {result.exit_code}]")
    text = result.text.rstrip("\n")
    if not text and not notes:
        return "[no output]"
    return "\n".join([text, *notes] if text else notes)


def shorten_middle(text: str, max_chars: int) -> str:
    """Head and tail of a text that is too long, with the count of what was left out between."""
    if len(text) <= max_chars:
        return text
    half = max_chars // 2
    left_out = len(text) - 2 * half
    return f"{text[:half]}\n[... {left_out} characters left out ...]\n{text[len(text) - half :]}"


def _refuse_nul(*words: str) -> None:
    if any("\0" in word for word in words):
        raise ToolError("[a command cannot hold a NUL character]")


def _take(command: Command, least: int, most: int, default: str = "") -> list[str]:
    """The arguments, filled up to `most` with `default`."""
    if not least <= len(command.args) <= most:
        raise _usage(command)
    return [*command.args, *[default] * (most - len(command.args))]


def _number(command: Command, text: str) -> int:
    if not text.isdecimal() or len(text) > 9:
        raise _usage(command)
    return int(text)


def _usage(command: Command) -> ToolError:
    return ToolError(f"[usage: {TOOLS[command.tool].usage}]")
