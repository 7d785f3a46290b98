"""The tools, in a plain directory and in a real sandbox."""

from __future__ import annotations

import pytest

from actors.agent.commands import Command, parse_command
from actors.agent.tools import TOOLS, Toolbox
from protocol.config import EpisodeSettings
from protocol.errors import SandboxError
from sandbox.base import Sandbox
from sandbox.fake import FakeBackend
from sandbox.namespace.backend import NamespaceBackend

pytestmark = pytest.mark.parametrize("open_sandbox", [FakeBackend, NamespaceBackend], indirect=True)

NAMES = frozenset(TOOLS)
CALC = "def add(a, b):\n    return a - b\n"


async def say(sandbox: Sandbox, *blocks: str, **settings: object) -> str:
    """Answer to the last of several commands."""
    tools = Toolbox(sandbox, EpisodeSettings(**settings))
    for block in blocks:
        text = (await tools.run(parse_command(block, NAMES), timeout_s=20)).text
    return text


async def test_shell_runs_in_the_repository_and_names_odd_ends(open_sandbox) -> None:
    sandbox = await open_sandbox({"calc.py": CALC})
    assert await say(sandbox, "grep -rn 'def add' .") == "./calc.py:1:def add(a, b):"
    assert await say(sandbox, "true") == "[no output]"
    assert await say(sandbox, "echo out; echo err >&2; exit 3") == "out\nerr\n[exit status 3]"
    assert await say(sandbox, "shell echo $((1+1))") == "2"
    assert await say(sandbox, "cat <<'E'\nopen x\nE\n") == "open x"
    assert "[killed after" in await say(sandbox, "echo begun; sleep 30", command_timeout_s=0.3)
    assert await say(sandbox, "[[ a == a ]] && echo bash") == "bash"


async def test_output_that_is_long_or_no_text_is_shown_safely(open_sandbox) -> None:
    sandbox = await open_sandbox({})
    text = await say(sandbox, "seq 100000", max_observation_chars=200)
    assert len(text) < 300
    assert text.startswith("1\n2\n")
    assert text.endswith("100000")
    assert "left out" in text
    assert await say(sandbox, "printf 'a\\377b'") == "a\ufffdb"


async def test_open_shows_numbered_lines_and_moves_its_window(open_sandbox) -> None:
    sandbox = await open_sandbox({"calc.py": CALC, "long.txt": "".join(f"line {n}\n" for n in range(1, 31))})
    assert await say(sandbox, "open calc.py") == "[calc.py: lines 1-2 of 2]\n1:def add(a, b):\n2:    return a - b"
    small = {"window_lines": 5}
    assert (await say(sandbox, "open long.txt", **small)).startswith("[long.txt: lines 1-5 of 30]\n1:line 1\n")
    assert (await say(sandbox, "open long.txt 20", **small)).startswith("[long.txt: lines 18-22 of 30]")
    assert (await say(sandbox, "open long.txt", "scroll down", **small)).startswith("[long.txt: lines 4-8 of 30]")
    assert (await say(sandbox, "open long.txt", "scroll", "scroll up", **small)).startswith("[long.txt: lines 1-5")
    assert (await say(sandbox, "open long.txt", "goto 30", **small)).startswith("[long.txt: lines 26-30 of 30]")
    assert (await say(sandbox, "open long.txt", "goto 30", "scroll", **small)).startswith("[long.txt: lines 26-30")


async def test_open_shows_whole_lines_that_fit(open_sandbox) -> None:
    sandbox = await open_sandbox({"wide.txt": "x" * 90 + "\n" + "y" * 5000 + "\n" + "z\n" * 50})
    text = await say(sandbox, "open wide.txt", max_observation_chars=700)
    assert len(text) <= 700
    assert "left out" not in text
    assert "[... 4600 characters more]" in text
    assert text.splitlines()[0] == f"[wide.txt: lines 1-{len(text.splitlines()) - 1} of 52]"


@pytest.mark.parametrize(
    ("block", "answer"),
    [
        ("open nothing.py", "[nothing.py: no such file]"),
        ("open src", "[src: not a regular file]"),
        ("open data.bin", "[data.bin is a binary file of 3 bytes]"),
        ("open calc.py 9", "[calc.py: no such line 9, the file has 2 lines]"),
        ("open", "[usage: open PATH [LINE]]"),
        ("open calc.py two", "[usage: open PATH [LINE]]"),
        ("goto 1", "[no file is open. Use: open PATH]"),
        ("scroll", "[no file is open. Use: open PATH]"),
        ("scroll sideways", "[usage: scroll up|down]"),
        ("edit 1:1\nx\n", "[no file is open. Use: open PATH]"),
        ("edit calc.py 4:4\nx\n", "[calc.py: no such line 4, the file has 2 lines]"),
        ("edit calc.py 2:3\nx\n", "[calc.py: no such line 3, the file has 2 lines]"),
        ("edit calc.py 2:0\nx\n", "[calc.py: no such line 0, the file has 2 lines]"),
        ("edit calc.py 0:1\nx\n", "[calc.py: no such line 0, the file has 2 lines]"),
        ("create calc.py\nx\n", "[calc.py exists already. Change it with edit or replace]"),
        ("create src\nx\n", "[src exists already. Change it with edit or replace]"),
        ("create calc.py/x\nx\n", "[calc.py/x: no such file]"),
        ("replace calc.py 'a * b' 'a + b'", "[calc.py: the text to replace is not there. Nothing changed]"),
        ("replace calc.py '' 'a + b'", "[calc.py: the text to replace is not there. Nothing changed]"),
        ("search_file add nothing.py", "[nothing.py: no such file]"),
        ("search_file nowhere calc.py", "['nowhere' is not in calc.py]"),
        ("search_dir nowhere", "['nowhere' is not in .]"),
        ("search_dir add nowhere", "[nowhere: no such directory]"),
        ("find_file *.rs", "[no file is named '*.rs' in .]"),
    ],
)
async def test_mistakes_are_answered(open_sandbox, block: str, answer: str) -> None:
    sandbox = await open_sandbox({"calc.py": CALC, "src/x.py": "", "data.bin": b"a\0b"})
    assert await say(sandbox, block) == answer
    assert await sandbox.read("calc.py") == CALC.encode()


async def test_replace_of_text_that_stands_twice_names_the_lines(open_sandbox) -> None:
    sandbox = await open_sandbox({"x.py": "a = 1\nb = 2\na = 1\n"})
    answer = await say(sandbox, "replace x.py 'a = 1' 'a = 3'")
    assert answer == "[x.py: the text to replace is there 2 times (lines 1, 3). Give more of it. Nothing changed]"


async def test_create_edit_and_replace_change_files(open_sandbox) -> None:
    sandbox = await open_sandbox({"calc.py": CALC})
    assert await say(sandbox, "create pkg/new.py\nx = 1\ny = 2\n") == "[pkg/new.py: created, 2 lines]"
    assert await sandbox.read("pkg/new.py") == b"x = 1\ny = 2\n"

    assert await say(sandbox, "replace calc.py 'a - b' 'a + b'") == (
        "[calc.py: changed, lines 2-2 of 2]\n2:    return a + b"
    )
    assert await sandbox.read("calc.py") == b"def add(a, b):\n    return a + b\n"

    several = (
        "replace calc.py\n<<<<<<<\ndef add(a, b):\n    return a + b\n=======\ndef add(x):\n    return x\n>>>>>>>\n"
    )
    assert (await say(sandbox, several)).startswith("[calc.py: changed, lines 1-2 of 2]")
    assert await sandbox.read("calc.py") == b"def add(x):\n    return x\n"

    assert await say(sandbox, "open calc.py", "edit 2:2\n    y = x\n    return y\n") == (
        "[calc.py: changed, lines 2-3 of 3]\n2:    y = x\n3:    return y"
    )
    assert await say(sandbox, "edit calc.py 1:0\nimport os\n", edit_context_lines=1) == (
        "[calc.py: changed, lines 1-2 of 4]\n1:import os\n2:def add(x):"
    )
    assert await say(sandbox, "edit calc.py 1:2\n") == "[calc.py: changed, 2 lines]"
    assert await sandbox.read("calc.py") == b"    y = x\n    return y\n"
    assert await say(sandbox, "edit calc.py 3:2\nend\n") == "[calc.py: changed, lines 3-3 of 3]\n3:end"
    assert await say(sandbox, "edit calc.py 1:3\n") == "[calc.py: changed, 0 lines]"
    assert await say(sandbox, "edit calc.py 1:0\nback\n") == "[calc.py: changed, lines 1-1 of 1]\n1:back"


async def test_edits_leave_everything_else_of_a_file_alone(open_sandbox) -> None:
    odd = b"caf\xe9 \xff\r\ntwo\r\nthree"
    sandbox = await open_sandbox({"odd.txt": odd})
    assert await say(sandbox, "replace odd.txt two 2") == "[odd.txt: changed, lines 2-2 of 3]\n2:2"
    assert await sandbox.read("odd.txt") == odd.replace(b"two", b"2")
    await say(sandbox, "edit odd.txt 2:2\nzwei\ndrei\n")
    assert await sandbox.read("odd.txt") == odd.replace(b"two", b"zwei\r\ndrei")
    assert (
        await say(sandbox, "open odd.txt 1") == "[odd.txt: lines 1-4 of 4]\n1:caf\ufffd \ufffd\n2:zwei\n3:drei\n4:three"
    )


async def test_an_edited_script_stays_executable(open_sandbox) -> None:
    sandbox = await open_sandbox({"run.sh": "#!/bin/sh\necho one\n", "plain.txt": "one\n"})
    await say(sandbox, "chmod +x run.sh", "replace run.sh one two", "replace plain.txt one two")
    assert await say(sandbox, "./run.sh") == "two"
    assert await say(sandbox, "stat -c %a plain.txt") == "644"


async def test_searches_see_the_tree_and_nothing_of_git(open_sandbox) -> None:
    files = {"b.py": "x = needle\n", "a/c.py": "one\nneedle -1\n", ".git/config": "needle\n", "bin": b"\0needle\n"}
    sandbox = await open_sandbox({**files, ".hidden/d.py": "needle"})
    found = ".hidden/d.py:1:needle\na/c.py:2:needle -1\nb.py:1:x = needle"
    assert await say(sandbox, "search_dir needle") == found
    assert await say(sandbox, "search_dir 'needle -1' a") == "a/c.py:2:needle -1"
    assert await say(sandbox, "search_dir -1") == "a/c.py:2:needle -1"
    assert await say(sandbox, "find_file *.py") == ".hidden/d.py\na/c.py\nb.py"
    assert await say(sandbox, "find_file c* ./a/") == "./a/c.py"
    assert await say(sandbox, "search_file needle a/c.py") == "a/c.py:2:needle -1"
    assert await say(sandbox, "open b.py", "search_file needle") == "b.py:1:x = needle"


async def test_many_matches_are_counted(open_sandbox) -> None:
    sandbox = await open_sandbox({"x.txt": "word\n" * 80})
    lines = (await say(sandbox, "search_file word x.txt")).splitlines()
    assert len(lines) == 51
    assert lines[-1] == "[30 more or beyond: narrow the search]"


async def test_words_and_paths_are_data(open_sandbox) -> None:
    hostile = "$(touch hacked); `touch hacked` 'x' \"y\" *"
    sandbox = await open_sandbox({hostile: f"{hostile}\n", "-n": "dash\n"})
    assert await say(sandbox, f"open {_quoted(hostile)}") == f"[{hostile}: lines 1-1 of 1]\n1:{hostile}"
    assert await say(sandbox, f"search_dir {_quoted(hostile)}") == f"{hostile}:1:{hostile}"
    assert await say(sandbox, f"find_file {_quoted('$(touch hacked)*')}") == hostile
    assert await say(sandbox, f"replace {_quoted(hostile)} '*' '?'") == (
        f"[{hostile}: changed, lines 1-1 of 1]\n1:{hostile[:-1]}?"
    )
    assert await say(sandbox, "replace -n dash dot", "open -n") == "[-n: lines 1-1 of 1]\n1:dot"
    assert await say(sandbox, "find_file hacked") == "[no file is named 'hacked' in .]"


async def test_a_nul_character_is_an_answer(open_sandbox) -> None:
    sandbox = await open_sandbox({})
    for block in ("open a\0b", "echo a\0b", "search_dir '\0'"):
        assert await say(sandbox, block) == "[a command cannot hold a NUL character]"


async def test_submit_ends(open_sandbox) -> None:
    tools = Toolbox(await open_sandbox({}), EpisodeSettings())
    assert (await tools.run(Command(tool="submit"), timeout_s=1)).submitted


async def test_a_dead_sandbox_is_an_error_and_no_answer(open_sandbox) -> None:
    sandbox = await open_sandbox({"calc.py": CALC})
    await sandbox.close()
    for block in ("open calc.py", "true", "create x\nx\n", "search_dir x"):
        with pytest.raises(SandboxError):
            await say(sandbox, block)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
