"""The search tools. Constant POSIX sh programs walk the tree inside the sandbox: words and paths are their arguments.

`find` and `grep` are used where the image has them; without them the shell's own built-ins do the same, slower.
"""

from __future__ import annotations

from actors.agent.files import FileTools, ToolError
from actors.agent.window import shorten
from sandbox.base import Sandbox

MAX_MATCHES = 50
_MAX_OUTPUT = 1 << 18
_NO_DIRECTORY = 9

_WALK = r"""
walk() {
  for f in "$1"/* "$1"/.[!.]* "$1"/..?*; do
    if [ -L "$f" ]; then continue
    elif [ -d "$f" ]; then [ "$f" = ./.git ] || (walk "$f")
    elif [ -f "$f" ]; then visit "$f"
    fi
  done
}
unset CDPATH
cd -- "$2" 2>/dev/null || exit 9
"""

_FIND_FILE = (
    _WALK
    + r"""
wanted=$1
visit() { case ${1##*/} in $wanted) printf '%s\n' "$1";; esac; }
walk .
"""
)

_SEARCH_DIR = (
    _WALK
    + r"""
if command -v find >/dev/null 2>&1 && command -v grep >/dev/null 2>&1; then
  find . -name .git -prune -o -type f -size -4096k -exec grep -nFI -e "$1" /dev/null {} + 2>/dev/null
  exit 0
fi
wanted=$1
visit() {
  n=0
  while IFS= read -r line || [ -n "$line" ]; do
    n=$((n + 1))
    case $line in *"$wanted"*) printf '%s:%s:%s\n' "$1" "$n" "$line";; esac
  done <"$1"
}
walk .
"""
)


class FindTools:
    """Search one file, a directory, or for file names. Words are literal text; file names are shell patterns."""

    def __init__(self, sandbox: Sandbox, files: FileTools, timeout_s: float) -> None:
        self._sandbox = sandbox
        self._files = files
        self._timeout_s = timeout_s

    async def search_file(self, word: str, path: str) -> str:
        """Lines of one file that hold `word`."""
        file = await self._files.read(path)
        found = [f"{path}:{n}:{shorten(line)}" for n, line in enumerate(file.lines, 1) if word in line]
        return _listing(found, f"{word!r} is not in {path}")

    async def search_dir(self, word: str, directory: str) -> str:
        """Lines below `directory` that hold `word`."""
        found = sorted(await self._walk(_SEARCH_DIR, word, directory), key=_by_place)
        return _listing([shorten(line) for line in found], f"{word!r} is not in {directory}")

    async def find_file(self, pattern: str, directory: str) -> str:
        """Files below `directory` whose name fits `pattern`."""
        found = await self._walk(_FIND_FILE, pattern, directory)
        return _listing(sorted(found), f"no file is named {pattern!r} in {directory}")

    async def _walk(self, program: str, word: str, directory: str) -> list[str]:
        result = await self._sandbox.exec(
            ["sh", "-c", program, "sh", word, directory], self._timeout_s, max_output=_MAX_OUTPUT
        )
        if result.exit_code == _NO_DIRECTORY:
            raise ToolError(f"[{directory}: no such directory]")
        if result.timed_out:
            raise ToolError(f"[stopped after {self._timeout_s:g} s: search a smaller directory]")
        text = result.head.decode(errors="replace")  # what was cut out is counted as more matches below
        prefix = "" if directory in (".", "./") else directory.rstrip("/") + "/"
        return [prefix + line.removeprefix("./") for line in text.splitlines() if line.startswith("./")]


def _listing(found: list[str], nothing: str) -> str:
    if not found:
        return f"[{nothing}]"
    if len(found) <= MAX_MATCHES:
        return "\n".join(found)
    return "\n".join([*found[:MAX_MATCHES], f"[{len(found) - MAX_MATCHES} more or beyond: narrow the search]"])


def _by_place(line: str) -> tuple[str, int]:
    path, _, rest = line.partition(":")
    number = rest.partition(":")[0]
    return path, int(number) if number.isdecimal() else 0
