"""Text from a sandbox as HTML that does nothing: colours are shown, all else is escaped, removed or made visible."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from markupsafe import Markup, escape

SHOWN_CHARS = 20_000
"""So much of one text is on a page; the rest is a link away."""

# CSI (with its parameters), OSC and other strings up to their end, and the two-character ones
_ESCAPE = re.compile(
    r"(?:\x1b\[|\x9b)([0-9;:<=>?]*)[ -/]*([@-~]|\Z)"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]?"
)
# what turns or hides text: bidirectional marks, zero width, tags, controls
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]"
    "|[\ud800-\udfff]|[\U000e0000-\U000e007f]"
)
_COLOURS = ("black", "red", "green", "yellow", "blue", "magenta", "cyan", "white")


class Style(NamedTuple):
    """What a terminal would show a run of text in."""

    fore: str = ""
    back: str = ""
    bold: bool = False
    dim: bool = False
    italic: bool = False
    under: bool = False
    inverse: bool = False

    @property
    def classes(self) -> str:
        """Names of the style sheet."""
        marks = [f"f-{self.fore}" if self.fore else "", f"b-{self.back}" if self.back else ""]
        marks += [name for name in ("bold", "dim", "italic", "under", "inverse") if getattr(self, name)]
        return " ".join(f"t-{mark}" for mark in marks if mark)


def terminal(text: str) -> Markup:
    """What a program printed, with its colours."""
    parts = []
    for style, run in styled(_overwritten(text)):
        shown = visible(run)
        parts.append(Markup('<span class="{}">{}</span>').format(style.classes, shown) if style.classes else shown)
    return Markup("").join(parts)


def visible(text: str) -> Markup:
    """`text` escaped; characters that would turn or hide it stand there by their names."""
    parts, at = [], 0
    for found in _INVISIBLE.finditer(text):
        code = ord(found[0])
        parts += [escape(text[at : found.start()]), Markup('<span class="mark">{}</span>').format(_name(code))]
        at = found.end()
    return Markup("").join([*parts, escape(text[at:])])


def plain(text: str) -> str:
    """The same without markup, for titles and lists."""
    return _INVISIBLE.sub(lambda found: _name(ord(found[0])), _ESCAPE.sub("", text))


def cut(text: str, most: int = SHOWN_CHARS) -> tuple[str, int, str]:
    """Beginning, number of characters left out, end."""
    if len(text) <= most:
        return text, 0, ""
    half = most // 2
    return text[:half], len(text) - 2 * half, text[-half:]


def styled(text: str) -> Iterator[tuple[Style, str]]:
    """Runs of text by their style. Escape sequences that are no colours vanish."""
    style, at = Style(), 0
    for found in _ESCAPE.finditer(text):
        if found.start() > at:
            yield style, text[at : found.start()]
        at = found.end()
        if found[2] == "m" and not re.search("[<=>?]", found[1]):
            style = _select(style, found[1])
    if at < len(text):
        yield style, text[at:]


def _select(style: Style, parameters: str) -> Style:
    """The style after an SGR sequence (ECMA-48, 8.3.117)."""
    codes = [int(code) if code else 0 for code in re.split("[;:]", parameters[:200]) if len(code) < 4]
    while codes:
        code = codes.pop(0)
        if code in (38, 48):
            colour, codes = _extended(codes)
            style = style._replace(fore=colour) if code == 38 else style._replace(back=colour)
        elif code in _SWITCHES:
            style = _SWITCHES[code](style)
        elif code == 0:
            style = Style()
        elif code % 10 < 8 and code // 10 in (3, 4, 9, 10):
            colour = _COLOURS[code % 10]
            style = style._replace(fore=colour) if code // 10 in (3, 9) else style._replace(back=colour)
    return style


_SWITCHES: dict[int, Callable[[Style], Style]] = {
    1: lambda style: style._replace(bold=True),
    2: lambda style: style._replace(dim=True),
    3: lambda style: style._replace(italic=True),
    4: lambda style: style._replace(under=True),
    7: lambda style: style._replace(inverse=True),
    22: lambda style: style._replace(bold=False, dim=False),
    23: lambda style: style._replace(italic=False),
    24: lambda style: style._replace(under=False),
    27: lambda style: style._replace(inverse=False),
    39: lambda style: style._replace(fore=""),
    49: lambda style: style._replace(back=""),
}


def _extended(codes: list[int]) -> tuple[str, list[int]]:
    """A colour of 256, or of 24 bits, as the nearest of the eight; and the codes after it."""
    if codes[:1] == [5] and len(codes) > 1:
        number = codes[1]
        if number < 16:
            return _COLOURS[number % 8], codes[2:]
        if number >= 232:
            return _nearest([number - 232] * 3, 12), codes[2:]
        cube = number - 16
        return _nearest([cube // 36, cube // 6 % 6, cube % 6], 3), codes[2:]
    if codes[:1] == [2]:
        return _nearest(codes[1:4], 128), codes[4:]
    return "", []


def _nearest(levels: list[int], half: int) -> str:
    return _COLOURS[sum(1 << place for place, level in enumerate(levels) if level >= half) % 8]


def _overwritten(text: str) -> str:
    """A progress bar as its last state: what stands before a lone carriage return on a line is gone."""
    text = text.replace("\r\n", "\n")
    return re.sub(r"[^\n]*\r(?=[^\n])", "", text).replace("\r", "") if "\r" in text else text


def _name(code: int) -> str:
    return chr(0x2400 + code) if code < 32 else f"⟨U+{code:04X}⟩"
