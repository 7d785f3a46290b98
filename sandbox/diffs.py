"""Git's own diff between states of paths, made by git in an empty place: no setting of a tree or a user counts.

`git apply` on the tree that was given makes of it what the states say. Both are property-tested against each other.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from protocol.errors import ConfigError, SandboxError
from sandbox.listings import difference, list_tree
from sandbox.patches import Change, Patch, state_of

DEADLINE_S = 10.0
"""Of one diff by lines; what takes longer is told whole, as git tells binary files."""
_BINARY_DEADLINE_S = 60.0
_HUNK = re.compile(r"@@ -(?P<old>\d+(?:,(?P<old_count>\d+))?) \+(?P<new>\d+(?:,(?P<new_count>\d+))?) @@")
_DIFF = (
    *("git", "-c", "core.quotePath=true", "diff-tree", "-r", "-p", "--binary", "--full-index", "--no-renames"),
    *("--no-ext-diff", "--no-textconv", "--no-color", "--no-relative", "--unified=3", "--inter-hunk-context=0"),
    *("--src-prefix=a/", "--dst-prefix=b/", "--diff-algorithm=myers", "old", "new", "--"),
)
_IMPORT = ("git", "-c", "fastimport.unpackLimit=0", "-c", "pack.compression=0", "fast-import", "--quiet")
Pair = tuple[Change | None, Change | None]


def patch_between(before: Path, after: Path) -> Patch:
    """The patch that turns one directory on this host into another. Blocking."""
    found = difference(list_tree(before), list_tree(after))
    paths = sorted((*found.changed, *found.new, *found.deleted))
    changes = [state_of(after, path) or Change(path=path, kind="deleted") for path in paths]
    diff = git_diff((state_of(before, change.path), change) for change in changes)
    return Patch(changes=tuple(changes), diff=diff, left_out=found.left_out)


def git_diff(pairs: Iterable[Pair]) -> str:
    """Git's extended diff of pairs (before, after); None or `deleted`: the path is not there.

    Text is what both sides decode as UTF-8 without NUL: everything else is told in git's binary form, so that the diff
    is text whatever the files are. Blocking, and bounded in time. Raises `ConfigError` without git, `SandboxError`
    (kind: diff) when git fails.
    """
    present = [(_present(old), _present(new)) for old, new in pairs]
    text: list[Pair] = []
    binary: list[Pair] = []
    for pair in present:
        (text if all(side is None or _is_text(side.content) for side in pair) else binary).append(pair)
    if not text and not binary:
        return ""
    if shutil.which("git") is None:
        raise ConfigError("git is missing, and changes are told with it; type: apt-get install git", kind="git")
    return _diff(text, "diff") + _diff(binary, "-diff")


def _diff(pairs: list[Pair], attribute: str) -> str:
    if not any(old != new for old, new in pairs):
        return ""
    with tempfile.TemporaryDirectory(prefix="longhaul-diff-") as scratch:
        place = Path(scratch)
        for folder in ("objects", "refs/heads", "info"):
            (place / folder).mkdir(parents=True)
        (place / "HEAD").write_text("ref: refs/heads/none\n")
        (place / "info" / "attributes").write_text(f"* {attribute} -text -eol -working-tree-encoding -filter\n")
        _git(place, _IMPORT, b"".join(_stream(pairs)), _BINARY_DEADLINE_S)
        try:
            deadline = DEADLINE_S if attribute == "diff" else _BINARY_DEADLINE_S
            return _git(place, _DIFF, b"", deadline).decode()
        except subprocess.TimeoutExpired:
            (place / "info" / "attributes").write_text("* -diff\n")
            return _git(place, _DIFF, b"", _BINARY_DEADLINE_S).decode()


def _git(place: Path, command: tuple[str, ...], data: bytes, deadline_s: float) -> bytes:
    settings = {"GIT_DIR": str(place), "HOME": str(place), "XDG_CONFIG_HOME": str(place), "LC_ALL": "C"}
    settings |= {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_ATTR_NOSYSTEM": "1"}
    settings["PATH"] = os.environ.get("PATH", "/usr/bin:/bin")
    done = subprocess.run(
        command, cwd=place, input=data, env=settings, capture_output=True, timeout=deadline_s, check=False
    )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()[:500]
        raise SandboxError(f"git cannot tell a change: {command[-1]}: {said}", kind="diff")
    return done.stdout


def _stream(pairs: list[Pair]) -> Iterator[bytes]:
    """What `git fast-import` reads: the files, and a commit of either side."""
    for number, (old, new) in enumerate(pairs):
        for side, state in ((1, old), (2, new)):
            if state is not None:
                yield b"blob\nmark :%d\ndata %d\n" % (2 * number + side, len(state.content)) + state.content + b"\n"
    for side, name in ((1, b"old"), (2, b"new")):
        yield b"commit refs/heads/" + name + b"\ncommitter a <a> 0 +0000\ndata 0\n\n"
        for number, pair in enumerate(pairs):
            if (state := pair[side - 1]) is not None:
                yield b"M %s :%d %s\n" % (_mode(state), 2 * number + side, _quoted(state.path))
        yield b"\n"


def _present(change: Change | None) -> Change | None:
    return None if change is None or change.kind == "deleted" else change


def _mode(change: Change) -> bytes:
    return b"120000" if change.kind == "link" else b"100755" if change.executable else b"100644"


def _is_text(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return b"\0" not in content


def _quoted(path: str) -> bytes:
    """A path as `fast-import` takes it: in quotes, with everything unusual in octal."""
    plain = [32 <= byte < 127 and byte not in b'"\\' for byte in range(256)]
    return b'"' + b"".join(b"%c" % byte if plain[byte] else b"\\%03o" % byte for byte in path.encode()) + b'"'


def _lines(text: str) -> list[str]:
    """Lines as git sees them: only a newline ends one."""
    return [line + "\n" for line in text.split("\n")[:-1]] + ([last] if (last := text.split("\n")[-1]) else [])


def reverse_diff(diff: str) -> str:
    """The diff that undoes a text diff. Raises `ValueError` for binary hunks, renames and copies."""
    turned: list[str] = []
    held = ""
    old = new = 0  # lines of the current hunk that are still to come, on either side
    for line in _lines(diff):
        if line.startswith(("GIT binary patch", "Binary files", "rename ", "copy ")) and not (old or new):
            raise ValueError(f"a diff with {line.split()[0]} hunks cannot be turned round as text")
        if old or new:
            sign = line[:1]
            old -= sign not in "+\\"
            new -= sign not in "-\\"
            turned.append({"+": "-", "-": "+"}.get(sign, sign) + line[1:])
        elif hunk := _HUNK.match(line):
            old, new = (int(count or 1) for count in hunk.group("old_count", "new_count"))
            turned.append(f"@@ -{hunk['new']} +{hunk['old']} @@{line[hunk.end() :]}")
        elif line.startswith(("--- ", "old mode ")):
            held = line
        elif line.startswith("+++ "):
            turned += [f"--- {_on_side('a', line[4:])}", f"+++ {_on_side('b', held[4:])}"]
        elif line.startswith("new mode "):
            turned += [f"old mode {line[9:]}", f"new mode {held[9:]}"]
        elif line.startswith(("new file mode ", "deleted file mode ")):
            turned.append(("deleted" if line.startswith("new") else "new") + line[line.index(" file mode ") :])
        elif not line.startswith("index "):
            turned.append(line)
    return "".join(turned)


def _on_side(side: str, name: str) -> str:
    return f"{side}{name[1:]}" if name.startswith(("a/", "b/")) else name
