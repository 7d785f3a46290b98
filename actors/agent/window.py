"""Which lines of a file the agent sees: as many as fit, with the line it asked for among them. Pure."""

from __future__ import annotations

from collections.abc import Sequence

_MAX_LINE_CHARS = 400
_OVERLAP = 2
_HEADER_CHARS = 60


class Window:
    """The lines shown last, and where to go from there.

    Args:
        num_lines: most lines shown at once.
        max_chars: room for the whole text; whole lines are left out rather than pieces of them.
    """

    def __init__(self, num_lines: int, max_chars: int) -> None:
        self._num_lines = num_lines
        self._max_chars = max_chars
        self.reset()

    def reset(self) -> None:
        """Nothing was shown yet."""
        self.first, self.last = 1, 0

    def around(self, path: str, lines: Sequence[str], line: int) -> str:
        """The lines before and after `line` (from 1)."""
        self._place(path, lines, line)
        self._grow(-1, self._num_lines // 2, self._room // 2)
        return self._fill(path, +1)

    def below(self, path: str, lines: Sequence[str]) -> str:
        """The lines after those shown last, which repeat the last two of them."""
        self._place(path, lines, self.last + 1 - _OVERLAP)
        return self._fill(path, +1)

    def above(self, path: str, lines: Sequence[str]) -> str:
        """The lines before those shown last, which repeat the first two of them."""
        self._place(path, lines, self.first - 1 + _OVERLAP)
        return self._fill(path, -1)

    def change(self, path: str, lines: Sequence[str], first: int, last: int) -> str:
        """Lines `first` to `last`, as far as they exist and fit, under a header that says that they changed."""
        self._place(path, lines, max(first, 1))
        if last < first or not lines:
            self.last = self.first - 1
            return f"[{path}: changed, {count_lines(len(lines))}]"
        self._grow(+1, last - self.first, self._room)
        return self._text(path, "changed, ")

    def _place(self, path: str, lines: Sequence[str], line: int) -> None:
        self._lines = lines
        self.first = self.last = min(max(line, 1), max(len(lines), 1))
        self._room = self._max_chars - len(path) - _HEADER_CHARS - (self._cost(self.first) if lines else 0)

    def _fill(self, path: str, direction: int) -> str:
        """Grow in one direction as far as it goes, then in the other."""
        if not self._lines:
            return f"[{path}: {count_lines(0)}]"
        self._grow(direction, self._num_lines, self._room)
        self._grow(-direction, self._num_lines, self._room)
        return self._text(path)

    def _grow(self, direction: int, most: int, room: int) -> None:
        for _ in range(most):
            number = self.first - 1 if direction < 0 else self.last + 1
            if not 1 <= number <= len(self._lines) or self.last - self.first + 1 >= self._num_lines:
                return
            cost = self._cost(number)
            if cost > room:
                return
            room -= cost
            self._room -= cost
            self.first, self.last = min(self.first, number), max(self.last, number)

    def _cost(self, number: int) -> int:
        return len(self._numbered(number)) + 1

    def _numbered(self, number: int) -> str:
        return f"{number}:{shorten(self._lines[number - 1])}"

    def _text(self, path: str, verb: str = "") -> str:
        header = f"[{path}: {verb}lines {self.first}-{self.last} of {len(self._lines)}]"
        return "\n".join([header, *(self._numbered(n) for n in range(self.first, self.last + 1))])


def count_lines(count: int) -> str:
    """`1 line`, `2 lines`."""
    return "1 line" if count == 1 else f"{count} lines"


def shorten(line: str) -> str:
    """A line that no window would hold, cut at its end."""
    extra = len(line) - _MAX_LINE_CHARS
    return line if extra <= 0 else f"{line[:_MAX_LINE_CHARS]} [... {extra} characters more]"
