"""A sandbox whose files are a dictionary: runs no command of the model, answers the few that the expert uses.

Episodes on it cost a millisecond instead of tens and see what they would see in a real sandbox, as long as they keep to
the tools and `ls` (a test holds the observations equal). Anything else is "command not found".
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath

from protocol.errors import SandboxError
from sandbox.base import Command, ExecResult, Sandbox, SandboxSpec, Snapshot

_NOT_FOUND, _NO_DIRECTORY = 127, 9


class MemorySandbox(Sandbox):
    """One episode's files."""

    def __init__(self, files: Mapping[str, str], spec: SandboxSpec) -> None:
        self.spec = spec
        self.files = {path: text.encode() for path, text in files.items()}

    async def run(self, command: Command) -> ExecResult:
        """Recognise what the tools run by its arguments: `sh -c PROGRAM sh ARGUMENT...`."""
        match command.argv:
            case [_, "-c", _, _, word, directory]:
                return self._search(word, directory)
            case [_, "-c", program, _, _] if program.startswith("test -x "):
                return _result(1)
            case [_, "-c", _, _, "ls"]:
                return _result(0, "".join(f"{name}\n" for name in sorted({path.split("/")[0] for path in self.files})))
            case [_, "-c", _, _, program] if program.split():
                return _result(_NOT_FOUND, f"bash: line 1: {program.split()[0]}: command not found\n")
        raise SandboxError(f"expected `sh -c PROGRAM sh ARGUMENT...`, got {command.argv!r}", kind="unsupported")

    def _search(self, word: str, directory: str) -> ExecResult:
        top = PurePosixPath(directory)
        if top.parts and not any(path.startswith(f"{top}/") for path in self.files):
            return _result(_NO_DIRECTORY)
        found = []
        for path, content in self.files.items():
            inside = PurePosixPath(path)
            if not top.parts or inside.is_relative_to(top):
                shown = inside.relative_to(top) if top.parts else inside
                lines = enumerate(content.decode(errors="replace").splitlines(), 1)
                found += [f"./{shown}:{number}:{line}\n" for number, line in lines if word in line]
        return _result(0, "".join(found))

    async def write(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Write a file."""
        self.files[self._inside(path)] = data

    async def read(self, path: str, max_bytes: int = 1 << 24) -> bytes:
        """A file's content."""
        path = self._inside(path)
        if path in self.files:
            return self.files[path]
        is_folder = any(other.startswith(f"{path}/") for other in self.files) or path == "."
        kind = "not_a_file" if is_folder else "missing"
        raise SandboxError(f"{path}: {kind}", kind=kind)

    def _inside(self, path: str) -> str:
        """`path` relative to the working directory."""
        parts = PurePosixPath(self.spec.workdir, path)
        if ".." in parts.parts or not parts.is_relative_to(self.spec.workdir):
            raise SandboxError(f"{path} is outside of {self.spec.workdir}", kind="missing")
        return str(parts.relative_to(self.spec.workdir))

    async def kill_all(self) -> None:
        """Nothing runs."""

    async def snapshot(self) -> Snapshot:
        """Not offered."""
        raise SandboxError("a sandbox in memory has no snapshots", kind="unsupported")

    async def close(self) -> None:
        """Nothing to give back."""


def _result(exit_code: int, output: str = "") -> ExecResult:
    data = output.encode()
    return ExecResult(exit_code=exit_code, head=data, tail=b"", total_bytes=len(data), timed_out=False, duration_s=0.0)
