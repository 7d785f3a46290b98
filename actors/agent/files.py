"""The file tools: a window over one open file, and edits by line range or by text.

Content passes through unharmed: bytes that are not UTF-8, CRLF line ends, a missing last newline, the executable bit.
"""

from __future__ import annotations

from msgspec import Struct

from actors.agent.window import Window, count_lines
from protocol.errors import SandboxError
from sandbox.base import Sandbox

_MAX_FILE_BYTES = 1 << 23
_IS_EXECUTABLE = 'test -x "$1"'
AGENT_MISTAKES = frozenset({"missing", "too_large", "not_a_file", "denied", "bad_path"})
"""Kinds of `SandboxError` that answer the agent's own doing instead of failing its episode."""

_OLD, _MIDDLE, _NEW = "<<<<<<<\n", "=======\n", ">>>>>>>\n"


class ToolError(Exception):
    """The agent asked for what cannot be done. `str(error)` is the answer."""


class TextFile(Struct, frozen=True, kw_only=True):
    """A file as lines without their ends."""

    lines: list[str]
    newline: str = "\n"
    ends_with_newline: bool = True

    @staticmethod
    def parse(data: bytes) -> TextFile:
        """Split; every byte comes back from `to_bytes` unless its line was changed."""
        text = data.decode("utf-8", "surrogateescape")
        if not text:
            return TextFile(lines=[])
        uses_crlf = text.count("\r\n") == text.count("\n") > 0
        newline = "\r\n" if uses_crlf else "\n"
        ends = text.endswith(newline)
        return TextFile(lines=text.removesuffix(newline).split(newline), newline=newline, ends_with_newline=ends)

    def to_bytes(self) -> bytes:
        """The file's content."""
        text = self.newline.join(self.lines) + (self.newline if self.ends_with_newline and self.lines else "")
        return text.encode("utf-8", "surrogateescape")

    def replace_lines(self, start: int, end: int, new: list[str]) -> TextFile:
        """Lines start..end (from 1, inclusive; end = start - 1 inserts) become `new`."""
        lines = [*self.lines[: start - 1], *new, *self.lines[end:]]
        return TextFile(lines=lines, newline=self.newline, ends_with_newline=self.ends_with_newline or not self.lines)


class OpenFile(Struct, frozen=True, kw_only=True):
    """Which file is open, and the lines of it that were shown last."""

    path: str
    first: int
    last: int


class FileTools:
    """State of one episode's file tools: which file is open and where its window stands.

    Args:
        window: lines shown at once.
        context: lines shown before and after an edit.
        max_chars: room for an answer; a window shows fewer lines rather than pieces of them.
    """

    def __init__(self, sandbox: Sandbox, *, window: int, context: int, max_chars: int) -> None:
        self._sandbox = sandbox
        self._window = Window(window, max_chars)
        self._context = context
        self._open: str | None = None

    @property
    def state(self) -> OpenFile | None:
        """All that the tools remember; to be set where they go on for other ones."""
        if self._open is None:
            return None
        return OpenFile(path=self._open, first=self._window.first, last=self._window.last)

    @state.setter
    def state(self, state: OpenFile | None) -> None:
        if state is not None:
            self._open, self._window.first, self._window.last = state.path, state.first, state.last

    async def open(self, path: str, line: int = 1) -> str:
        """Show a window of `path` around `line`."""
        file = await self.read(path)
        self._open = path
        return self._show_around(path, file, line)

    async def goto(self, line: int) -> str:
        """Show the open file around `line`."""
        path = self.need_open()
        return self._show_around(path, await self.read(path), line)

    async def scroll(self, direction: str) -> str:
        """Move the window `up` or `down`."""
        path = self.need_open()
        file = await self.read(path)
        move = self._window.below if direction == "down" else self._window.above
        return move(path, file.lines)

    async def create(self, path: str, text: str) -> str:
        """Write a new file."""
        if await self._exists(path):
            raise ToolError(f"[{path} exists already. Change it with edit or replace]")
        await self._write(path, text.encode("utf-8", "surrogateescape"))
        self._open = path
        self._window.reset()
        num_lines = text.count("\n")
        return f"[{path}: created, {count_lines(num_lines)}]"

    async def edit(self, path: str, start: int, end: int, text: str) -> str:
        """Replace lines start..end by the lines of `text` (none: delete them)."""
        file = await self.read(path)
        count = len(file.lines)
        if not 1 <= start <= count + 1:
            raise ToolError(_no_such_line(path, start, count))
        if not start - 1 <= end <= count:
            raise ToolError(_no_such_line(path, end, count))
        new = text.removesuffix("\n").split("\n") if text else []
        return await self._change(path, file, start, end, new)

    async def replace(self, path: str, old: str, new: str) -> str:
        """Replace the one place where `old` stands by `new`."""
        file = await self.read(path)
        whole = "\n".join(file.lines) + ("\n" if file.ends_with_newline else "")
        places = _find_all(whole, old) if old else []
        if not places:
            raise ToolError(f"[{path}: the text to replace is not there. Nothing changed]")
        if len(places) > 1:
            lines = ", ".join(str(whole.count("\n", 0, at) + 1) for at in places[:5])
            many = f"is there {len(places)} times (lines {lines}). Give more of it"
            raise ToolError(f"[{path}: the text to replace {many}. Nothing changed]")
        before, _, after = whole.partition(old)
        text = before + new + after
        start = before.count("\n") + 1
        last = start + new.removesuffix("\n").count("\n") if new else start - 1
        changed = TextFile(
            lines=text.removesuffix("\n").split("\n") if text else [],
            newline=file.newline,
            ends_with_newline=text.endswith("\n"),
        )
        await self._write(path, changed.to_bytes(), keep_mode=True)
        self._open = path
        return self._show_change(path, changed, start, min(last, len(changed.lines)))

    async def read(self, path: str) -> TextFile:
        """A text file, or the answer why not."""
        try:
            data = await self._sandbox.read(path, _MAX_FILE_BYTES)
        except SandboxError as error:
            raise _as_answer(path, error) from error
        if b"\0" in data[:8192]:
            raise ToolError(f"[{path} is a binary file of {len(data)} bytes]")
        return TextFile.parse(data)

    def need_open(self) -> str:
        """Path of the open file."""
        if self._open is None:
            raise ToolError("[no file is open. Use: open PATH]")
        return self._open

    async def _change(self, path: str, file: TextFile, start: int, end: int, new: list[str]) -> str:
        changed = file.replace_lines(start, end, new)
        await self._write(path, changed.to_bytes(), keep_mode=True)
        self._open = path
        return self._show_change(path, changed, start, start + len(new) - 1)

    async def _exists(self, path: str) -> bool:
        try:
            await self._sandbox.read(path, max_bytes=1)  # its size does not matter: too large is there, too
        except SandboxError as error:
            if error.kind == "missing":
                return False
            if error.kind not in AGENT_MISTAKES:
                raise
        return True

    async def _write(self, path: str, data: bytes, *, keep_mode: bool = False) -> None:
        try:
            mode = 0o755 if keep_mode and await self._is_executable(path) else 0o644
            await self._sandbox.write(path, data, mode)
        except SandboxError as error:
            raise _as_answer(path, error) from error

    async def _is_executable(self, path: str) -> bool:
        result = await self._sandbox.exec(["sh", "-c", _IS_EXECUTABLE, "sh", path], timeout=10)
        return result.exit_code == 0

    def _show_around(self, path: str, file: TextFile, line: int) -> str:
        if not 1 <= line <= max(len(file.lines), 1):
            raise ToolError(_no_such_line(path, line, len(file.lines)))
        return self._window.around(path, file.lines, line)

    def _show_change(self, path: str, file: TextFile, start: int, end: int) -> str:
        return self._window.change(path, file.lines, start - self._context, end + self._context)


def split_replacement(body: str) -> tuple[str, str]:
    """Old and new text of a `<<<<<<<` / `=======` / `>>>>>>>` body."""
    head, opened, rest = body.partition(_OLD)
    old, divided, rest = rest.partition(_MIDDLE)
    new, closed, tail = rest.partition(_NEW)
    if not (opened and divided and closed) or head.strip() or tail.strip():
        raise ToolError("[replace: expected <<<<<<<, the old lines, =======, the new lines, >>>>>>>]")
    return old, new


def _find_all(text: str, part: str) -> list[int]:
    places: list[int] = []
    at = text.find(part)
    while at >= 0:
        places.append(at)
        at = text.find(part, at + len(part))
    return places


def _as_answer(path: str, error: SandboxError) -> Exception:
    if error.kind not in AGENT_MISTAKES:
        return error
    reasons = {"missing": "no such file", "not_a_file": "not a regular file", "too_large": "too large to open"}
    return ToolError(f"[{path}: {reasons.get(error.kind, 'cannot be written here')}]")


def _no_such_line(path: str, line: int, count: int) -> str:
    return f"[{path}: no such line {line}, the file has {count_lines(count)}]"
