"""Reading a JSON body that anybody may have written: typed, bounded, and every field accounted for."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from actors.gateway.asks import Refusal
from actors.history.matching import MOST_DEPTH, too_deep

MOST_MESSAGES = 20_000
MOST_TOOLS = 1024
MOST_STOPS = 16
MOST_LEVELS = MOST_DEPTH + 28  # arguments of calls stand inside messages, schemas inside tools


class Body:
    """The fields of one object. What was never asked for is `unknown`."""

    def __init__(self, fields: object, where: str = "") -> None:
        if not isinstance(fields, Mapping):
            raise Refusal("invalid", f"{where or 'the body'}: expected an object", param=where or None)
        self._fields = fields
        self._where = where
        self._seen: set[str] = set()

    @staticmethod
    def parse(data: bytes) -> Body:
        """The body of a request. Raises `Refusal`."""
        try:
            fields = _decode(data)
        except (ValueError, RecursionError) as error:
            raise Refusal("invalid", f"the body is not JSON: {error}") from None
        if too_deep(fields, MOST_LEVELS):
            raise Refusal("invalid", f"the body is nested more than {MOST_LEVELS} levels deep")
        return Body(clean(fields))

    def path(self, name: str) -> str:
        """Full name of a field, for an error."""
        return f"{self._where}.{name}" if self._where else name

    def refuse(self, name: str, why: str) -> Refusal:
        """What to raise for a field."""
        return Refusal("invalid", f"{self.path(name)}: {why}", param=self.path(name))

    def take(self, name: str) -> Any:
        """A field as it came; None where it is missing or null."""
        self._seen.add(name)
        return self._fields.get(name)

    def text(self, name: str, default: str | None = None) -> str:
        """A string; without a default it must be there."""
        value = self.take(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            raise self.refuse(name, "expected a string")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        """A boolean."""
        value = self.take(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.refuse(name, "expected true or false")
        return value

    def count(self, name: str) -> int | None:
        """A whole number of at least 1; None where it is missing."""
        value = self.take(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.refuse(name, "expected a whole number of at least 1")
        return value

    def items(self, name: str, most: int = MOST_MESSAGES) -> list[Any]:
        """A list; empty where it is missing."""
        value = self.take(name)
        if value is None:
            return []
        if not isinstance(value, list) or len(value) > most:
            raise self.refuse(name, f"expected a list of at most {most}")
        return value

    def objects(self, name: str, most: int = MOST_MESSAGES) -> list[Body]:
        """A list of objects."""
        return [Body(item, f"{self.path(name)}[{i}]") for i, item in enumerate(self.items(name, most))]

    def object(self, name: str) -> Body | None:
        """An object; None where it is missing."""
        value = self.take(name)
        return None if value is None else Body(value, self.path(name))

    def stops(self, name: str) -> tuple[str, ...]:
        """Stop strings: one, or a list of them."""
        value = self.take(name)
        texts = [value] if isinstance(value, str) else self.items(name, MOST_STOPS)
        if not all(isinstance(text, str) and text for text in texts):
            raise self.refuse(name, "expected strings that are not empty")
        return tuple(texts)

    def given(self, names: Iterable[str]) -> tuple[str, ...]:
        """Those of `names` that have a value."""
        return tuple(name for name in names if self.take(name) is not None)

    def unserved(self, reasons: Mapping[str, str]) -> None:
        """Refuse every field that has a value and cannot be served; `reasons` says why."""
        for name in self.given(reasons):
            if self._fields[name] not in (False, [], {}, ""):
                raise self.refuse(name, reasons[name])

    def note(self, names: Iterable[str]) -> None:
        """Fields that are known and change nothing here."""
        self._seen.update(names)

    @property
    def unknown(self) -> tuple[str, ...]:
        """Fields that nobody asked for."""
        return tuple(name for name in self._fields if name not in self._seen)


def _decode(data: bytes) -> Any:
    try:
        return msgspec.json.decode(data)
    except msgspec.DecodeError:  # half a surrogate pair, which JavaScript writes where it cuts a text
        return json.loads(data)


def clean(value: Any) -> Any:
    """The same without what no encoding holds (halves of surrogate pairs)."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    if isinstance(value, list):
        return [clean(item) for item in value]
    if isinstance(value, dict):
        return {clean(key): clean(item) for key, item in value.items()}
    return value
