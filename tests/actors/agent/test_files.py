"""File edits against a naive model of a file as a list of lines, and the searches without find and grep."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.agent.files import TextFile, ToolError, split_replacement
from actors.agent.find import _FIND_FILE, _SEARCH_DIR

LINE = st.text(alphabet=st.characters(exclude_characters="\r\n", codec="utf-8"), max_size=12)


@given(st.binary(max_size=200))
def test_every_byte_comes_back(data: bytes) -> None:
    assert TextFile.parse(data).to_bytes() == data


@given(st.lists(LINE, max_size=8), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_lines_are_what_an_editor_shows(lines: list[str], newline: str, ends: bool) -> None:
    text = newline.join(lines) + (newline if lines and ends else "")
    shown = TextFile.parse(text.encode())
    if "\r\n" in text or newline == "\n":
        naive = text.split(newline)
        assert shown.lines == (naive[:-1] if naive[-1] == "" else naive)


@given(st.lists(LINE, max_size=8), st.lists(LINE, max_size=4), st.booleans(), st.data())
def test_replacing_lines_is_list_surgery(lines: list[str], new: list[str], crlf: bool, data: st.DataObject) -> None:
    newline = b"\r\n" if crlf else b"\n"
    start = data.draw(st.integers(1, len(lines) + 1))
    end = data.draw(st.integers(start - 1, len(lines)))
    before = b"".join(line.encode() + newline for line in lines)
    after = TextFile.parse(before).replace_lines(start, end, new).to_bytes()
    naive = [*lines[: start - 1], *new, *lines[end:]]
    expected_newline = newline if lines else b"\n"  # an empty file has no line ends to keep
    assert after == b"".join(line.encode() + expected_newline for line in naive)


def test_a_missing_last_newline_stays_missing() -> None:
    assert TextFile.parse(b"a\nb").replace_lines(1, 1, ["x"]).to_bytes() == b"x\nb"
    assert TextFile.parse(b"").replace_lines(1, 0, ["x"]).to_bytes() == b"x\n"


def test_a_replacement_body_is_read() -> None:
    assert split_replacement("<<<<<<<\na\n=======\nb\n>>>>>>>\n") == ("a\n", "b\n")
    assert split_replacement("<<<<<<<\na\n=======\n>>>>>>>\n") == ("a\n", "")


@pytest.mark.parametrize(
    "body", ["", "a\n", "<<<<<<<\na\n>>>>>>>\n", "x\n<<<<<<<\na\n=======\nb\n>>>>>>>\n", "<<<<<<<\na\n=======\nb\n"]
)
def test_a_body_without_its_marks_is_a_mistake(body: str) -> None:
    with pytest.raises(ToolError, match="expected <<<<<<<"):
        split_replacement(body)


FILES = {"b.py": "x = needle\n", "a/c.py": "one\nneedle $(x) *", ".git/config": "needle\n", "a/.h": "needle\\n\n"}
BARE = {"PATH": "/nonexistent"}


@pytest.mark.parametrize(
    ("program", "word", "found"),
    [
        (_SEARCH_DIR, "needle", ["./a/.h:1:needle\\n", "./a/c.py:2:needle $(x) *", "./b.py:1:x = needle"]),
        (_SEARCH_DIR, "$(x) *", ["./a/c.py:2:needle $(x) *"]),
        (_SEARCH_DIR, "-x", []),
        (_FIND_FILE, "*.py", ["./a/c.py", "./b.py"]),
        (_FIND_FILE, "$(x)", []),
    ],
)
async def test_an_image_with_nothing_but_a_shell_can_be_searched(open_sandbox, program, word, found) -> None:
    sandbox = await open_sandbox(FILES)
    await sandbox.exec(["ln", "-s", "..", "a/loop"], timeout=60)
    bare = await sandbox.exec(["/bin/sh", "-c", program, "sh", word, "."], timeout=60, env=BARE)
    assert sorted(bare.text.splitlines()) == found
    full = await sandbox.exec(["/bin/sh", "-c", program, "sh", word, "."], timeout=60)
    assert sorted(full.text.splitlines()) == found


async def test_a_missing_directory_is_told(open_sandbox) -> None:
    sandbox = await open_sandbox(FILES)
    for program in (_SEARCH_DIR, _FIND_FILE):
        assert (await sandbox.exec(["sh", "-c", program, "sh", "x", "nowhere"], timeout=60)).exit_code == 9
