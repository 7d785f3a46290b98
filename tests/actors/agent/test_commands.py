"""Model turns -> commands or format errors."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.agent.commands import Command, FormatError, extract_block, parse_command, spoken
from actors.agent.tools import TOOLS

NAMES = frozenset(TOOLS)


def block(text: str, fence: str = "```") -> str:
    return f"{fence}command\n{text}\n{fence}"


@pytest.mark.parametrize(
    ("turn", "expected"),
    [
        (block("ls"), "ls\n"),
        (f"I will look.\n\n{block('ls -l')}\n", "ls -l\n"),
        (f"{block('a')}  ", "a\n"),
        ("```command  \nls\n```", "ls\n"),
        ("```python\nx\n```\n" + block("ls"), "ls\n"),
        (block("create a.md\n```\ncode\n```", "````"), "create a.md\n```\ncode\n```\n"),
        (block("echo '```command'"), "echo '```command'\n"),
    ],
)
def test_one_block_is_found(turn: str, expected: str) -> None:
    assert extract_block(turn) == expected


@pytest.mark.parametrize(
    ("turn", "complaint"),
    [
        ("", "no command"),
        ("ls", "no command"),
        ("```\nls\n```", "no command"),
        ("```bash\nls\n```", "no command"),
        (block("  "), "no command"),
        (f"{block('a')}\n{block('b')}", r"several commands \(2\)"),
        (f"{block('a')}\n```command\nb", r"several commands \(2\)"),
        ("```command\nls", "not closed"),
        ("text ```command\nls\n```", "no command"),
    ],
)
def test_format_errors_say_what_to_change(turn: str, complaint: str) -> None:
    with pytest.raises(FormatError, match=complaint):
        extract_block(turn)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ls -l\n", Command(tool="shell", body="ls -l")),
        ("shell ls -l\npwd\n", Command(tool="shell", body="ls -l\npwd")),
        ("cat <<E\nopen x\nE\n", Command(tool="shell", body="cat <<E\nopen x\nE")),
        ("openssl version\n", Command(tool="shell", body="openssl version")),
        ("open 'a b.py' 3\n", Command(tool="open", args=["a b.py", "3"])),
        ("\nsubmit\n", Command(tool="submit")),
        ("edit 1:2\n  a\n\n", Command(tool="edit", args=["1:2"], body="  a\n\n")),
        ("replace f 'it''s' \"it is\"\n", Command(tool="replace", args=["f", "its", "it is"])),
    ],
)
def test_first_word_picks_the_tool(text: str, expected: Command) -> None:
    assert parse_command(text, NAMES) == expected


def test_unbalanced_quotes_are_a_format_error() -> None:
    with pytest.raises(FormatError, match="arguments of open: No closing quotation"):
        parse_command("open 'a.py\n", NAMES)


@given(st.text(max_size=200) | st.lists(st.sampled_from(["```", "command", "\n", "open ", "'", "x"])).map("".join))
def test_any_text_is_a_command_or_a_format_error(text: str) -> None:
    try:
        command = parse_command(extract_block(text), NAMES)
    except FormatError as error:
        assert str(error).startswith("[format error")
    else:
        assert command.tool in NAMES


@given(st.text(alphabet=st.characters(exclude_characters="`"), min_size=1).filter(str.strip), st.text(max_size=40))
def test_a_block_comes_back_as_written(text: str, thought: str) -> None:
    thought = thought.replace("`", "")
    assert extract_block(f"{thought}\n{block(text)}") == f"{text}\n"


@pytest.mark.parametrize(
    ("turn", "block"),
    [
        ("<think>\n```command\nls\n```\nor\n</think>\n```command\nsearch_dir a .\n```", "search_dir a .\n"),
        ("the template opened the thought\n```command\nls\n```\n</think>\n```command\nls -a\n```", "ls -a\n"),
        ("<think>a</think>\nb\n<think>c\n```command\nls\n```</think>\n```command\npwd\n```", "pwd\n"),
        ("I look.\r\n```command\r\nls\r\n```\r\n", "ls\n"),
        ("[THINK]\n```command\nls\n```\n[/THINK]\n```command\npwd\n```", "pwd\n"),
        ("<seed:think>\n```command\nls\n```\n</seed:think>\n```command\npwd\n```", "pwd\n"),
        ("◁think▷\n```command\nls\n```\n◁/think▷\n```command\npwd\n```", "pwd\n"),
        ("<thinking>\n```command\nls\n```\n</thinking>\n```command\npwd\n```", "pwd\n"),
        ("```command\ngrep '<think>' a\n```", "grep '<think>' a\n"),
    ],
)
def test_what_is_thought_is_no_command(turn: str, block: str) -> None:
    assert extract_block(spoken(turn)) == block


def test_a_thought_alone_is_no_command() -> None:
    with pytest.raises(FormatError, match="no command"):
        extract_block(spoken("<think>\n```command\nls\n```\n</think>\nDone."))
    with pytest.raises(FormatError, match="no command"):
        extract_block(spoken("\n<think>Perhaps\n```command\nrm -rf .\n```\nor rather"))


def test_one_opening_after_another_is_read_at_once() -> None:
    # in time that grows with the square of a turn's length this would not end within the suite's limit
    with pytest.raises(FormatError, match="several commands"):
        extract_block("```command\nls\n" * 50_000)


@pytest.mark.parametrize(
    ("turn", "block"),
    [
        ("````command\ncat <<E\n```command\nls\n```\nE\n````", "cat <<E\n```command\nls\n```\nE\n"),
        ("```command  \nls\n``` \t\nand so", "ls\n"),
        ("```\nno\n```\n```command\nls\n```", "ls\n"),
        ("```command\nls\n````\n```", "ls\n````\n"),
    ],
)
def test_fences(turn: str, block: str) -> None:
    assert extract_block(turn) == block
