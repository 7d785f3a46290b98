"""What the model is told: prompts, tools, shortened answers."""

from __future__ import annotations

import re

from actors.agent.commands import extract_block, parse_command
from actors.agent.prompts import react_chat, shell_chat, tool_list
from actors.agent.tools import TOOLS, shorten_middle


def test_brief_is_the_issue_alone() -> None:
    assert react_chat("add is wrong", "brief") == [{"role": "user", "content": "add is wrong"}]
    assert shell_chat("add is wrong", "brief") == [{"role": "user", "content": "add is wrong"}]


def test_full_teaches_every_tool_and_shows_a_turn_that_can_be_read() -> None:
    system, user = react_chat("add is wrong", "full")
    assert user == {"role": "user", "content": "add is wrong"}
    for name, tool in TOOLS.items():
        assert tool.usage in system["content"]
        assert name == "shell" or re.search(rf"^{name}\b", tool_list(), re.MULTILINE)
    command = parse_command(extract_block(system["content"]), frozenset(TOOLS))
    assert (command.tool, command.args) == ("search_dir", ["def parse_date"])


def test_an_issue_with_braces_is_text() -> None:
    issue = "f'{x}' and {tools} fail"
    assert react_chat(issue, "full")[1]["content"] == issue
    assert "{tools}" not in react_chat(issue, "full")[0]["content"]


def test_these_are_the_tools() -> None:
    assert {
        *("shell", "open", "goto", "scroll", "create", "edit", "replace"),
        *("search_file", "search_dir", "find_file", "submit"),
    } == set(TOOLS)


def test_shortening_keeps_head_and_tail() -> None:
    assert shorten_middle("abcdef", 6) == "abcdef"
    assert shorten_middle("abcdefgh", 4) == "ab\n[... 4 characters left out ...]\ngh"
