"""What an endpoint takes of a request's parameters: one that it refuses is renamed or dropped once, and remembered."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

_RENAMED = {"max_tokens": "max_completion_tokens"}
_OPTIONAL = ("max_completion_tokens", "max_tokens", "temperature", "top_p", "seed")
_REFUSALS = (
    *("unsupported", "not supported", "does not support", "unrecognized", "unknown", "unexpected", "extra"),
    *("not permitted", "not allowed", "invalid parameter", "deprecated", "only the default"),
)


class Parameters:
    """Of one endpoint; shared by all requests to it.

    Attributes:
        changes: what became of parameters that were refused: a new name, or "" for one that is left out.
    """

    def __init__(self) -> None:
        self.changes: dict[str, str] = {}

    def of(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """`asked` as the endpoint takes it."""
        taken: dict[str, Any] = {}
        for name, value in asked.items():
            while name in self.changes and name:
                name = self.changes[name]
            if name:
                taken[name] = value
        return taken

    def learn(self, sent: Mapping[str, Any], said: Any) -> str:
        """The parameter of a request that a refusal names, now renamed or left out; empty if it names none."""
        text = said if isinstance(said, str) else json.dumps(said, default=str)
        if not any(words in text.lower() for words in _REFUSALS):
            return ""
        named = _field(said, "param")
        for name in _OPTIONAL:
            if name in sent and (name == named or re.search(rf"\b{name}\b", text)):
                self.changes[name] = _RENAMED.get(name, "")
                return name
        return ""


def _field(said: Any, name: str) -> str:
    error = said.get("error", said) if isinstance(said, dict) else None
    value = error.get(name) if isinstance(error, dict) else None
    return value if isinstance(value, str) else ""
