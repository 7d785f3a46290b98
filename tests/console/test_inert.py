"""What a terminal's text becomes on a page."""

from __future__ import annotations

import html
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from console.text.inert import cut, plain, styled, terminal, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m plain", '<span class="t-f-red">red</span> plain'),
        ("\x1b[1;42mx\x1b[22my", '<span class="t-b-green t-bold">x</span><span class="t-b-green">y</span>'),
        ("\x1b[38;5;196mx", '<span class="t-f-red">x</span>'),
        ("\x1b[38;2;0;0;255mx\x1b[39my", '<span class="t-f-blue">x</span>y'),
        ("\x1b]0;a title\x07x\x1b[2J\x1b[10;5Hy\x1b(B", "xy"),
        ("\x1b]8;;javascript:alert(1)\x1b\\link\x1b]8;;\x1b\\", "link"),
        (" 10%\r 50%\r100%\ndone\r\n", "100%\ndone\n"),
        ("<b>&\"'", "&lt;b&gt;&amp;&#34;&#39;"),
        ("a\x1b[31", "a"),
        ("\x1b[>4;1mx\x1b[38;5mx", "xx"),
    ],
)
def test_colours_are_shown_and_all_else_vanishes(text: str, shown: str) -> None:
    assert terminal(text) == shown


def test_what_turns_or_hides_text_stands_there_by_its_name() -> None:
    shown = visible("a\u202eb\x00c\u200bd\ud800")
    assert re.sub("<[^>]*>", "", shown) == "a⟨U+202E⟩b␀c⟨U+200B⟩d⟨U+D800⟩"
    assert plain("\x1b[1ma\u202e") == "a⟨U+202E⟩"


@given(st.text())
def test_nothing_but_our_spans_comes_through(text: str) -> None:
    shown = str(terminal(text))
    without = re.sub(r'<span class="(mark|t-[a-z -]+)">|</span>', "", shown)
    assert not set("<>\"'\x1b\u202e\x00") & set(without)
    assert shown.count("<span") == shown.count("</span>")
    assert "\x1b" not in html.unescape(without)


@given(st.text(alphabet=st.characters(exclude_characters="\r\x1b\x90\x98\x9b\x9d\x9e\x9f")))
def test_text_without_sequences_is_whole(text: str) -> None:
    assert "".join(run for _, run in styled(text)) == text


def test_long_text_is_cut_in_its_middle() -> None:
    assert cut("abcdefghij", 4) == ("ab", 6, "ij")
    assert cut("abcd", 4) == ("abcd", 0, "")
