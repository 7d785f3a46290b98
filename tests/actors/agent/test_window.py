"""The window over a file: whatever the lines and limits, nothing is hidden for good and nothing is cut silently."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from actors.agent.window import Window, shorten

LINES = st.lists(st.text(alphabet="ab", max_size=60), min_size=1, max_size=60)
NUM_LINES, MAX_CHARS = st.integers(4, 20), st.integers(300, 800)


def shown(text: str, lines: list[str]) -> tuple[int, int]:
    """The range that the header names, which must be what follows it."""
    header, *body = text.split("\n")
    first, last, count = map(int, re.fullmatch(r"\[f: (?:changed, )?lines (\d+)-(\d+) of (\d+)\]", header).groups())
    assert count == len(lines)
    assert body == [f"{n}:{lines[n - 1]}" for n in range(first, last + 1)]
    return first, last


@given(LINES, NUM_LINES, MAX_CHARS, st.data())
def test_the_line_asked_for_is_shown_and_the_window_is_full(
    lines: list[str], num_lines: int, max_chars: int, data: st.DataObject
) -> None:
    line = data.draw(st.integers(1, len(lines)))
    text = Window(num_lines, max_chars).around("f", lines, line)
    first, last = shown(text, lines)
    assert first <= line <= last
    assert last - first + 1 <= num_lines
    assert len(text) <= max_chars
    could_grow = [n for n in (first - 1, last + 1) if 1 <= n <= len(lines)]
    full = last - first + 1 == num_lines or all(len(text) + len(lines[n - 1]) + 5 > max_chars - 70 for n in could_grow)
    assert full or not could_grow


@given(LINES, NUM_LINES, MAX_CHARS)
def test_scrolling_down_and_up_shows_every_line(lines: list[str], num_lines: int, max_chars: int) -> None:
    window = Window(num_lines, max_chars)
    first, last = shown(window.around("f", lines, 1), lines)
    assert first == 1
    for _ in lines:
        next_first, next_last = shown(window.below("f", lines), lines)
        assert next_first <= last + 1
        assert next_last > last or last == len(lines)
        first, last = next_first, next_last
    assert last == len(lines)
    for _ in lines:
        next_first, next_last = shown(window.above("f", lines), lines)
        assert next_last >= first - 1
        first = next_first
    assert first == 1


@given(LINES, NUM_LINES, MAX_CHARS, st.data())
def test_a_change_shows_its_own_lines(lines: list[str], num_lines: int, max_chars: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(-2, len(lines)))
    last = data.draw(st.integers(max(first, 1), len(lines) + 3))
    begins, ends = shown(Window(num_lines, max_chars).change("f", lines, first, last), lines)
    assert begins == max(first, 1)
    assert ends <= min(last, len(lines))


def test_empty_files_and_deletions_are_told() -> None:
    window = Window(10, 500)
    assert window.around("f", [], 1) == window.below("f", []) == window.above("f", []) == "[f: 0 lines]"
    assert window.change("f", [], 1, 0) == "[f: changed, 0 lines]"
    assert window.change("f", ["a"], 2, 1) == "[f: changed, 1 line]"


def test_an_endless_line_is_cut_with_its_rest_counted() -> None:
    assert shorten("x" * 1000) == "x" * 400 + " [... 600 characters more]"
    assert shorten("x" * 400) == "x" * 400
