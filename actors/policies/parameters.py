"""What an endpoint takes of a request's parameters: one that it refuses is renamed or dropped once, and remembered."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_RENAMED = {"max_tokens": "max_completion_tokens"}
_OPTIONAL = ("seed", "top_p", "temperature", "max_completion_tokens", "max_tokens")
"""Those that cost least first: where a refusal names two that do not go together, the first is left out."""
_ECHOED = ("input", "body", "messages", "request")
"""Fields of a refusal in which servers tell the request again."""


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
        """The parameter of a request that a refusal names, now renamed or left out; empty if it names none.

        How it is refused is not looked at: every server has words of its own.
        """
        text = _told(said)
        named = _field(said, "param")
        for name in sorted(_OPTIONAL, key=lambda name: name != named):
            if name in sent and (name == named or re.search(rf"\b{name}\b", text)):
                self.changes[name] = _RENAMED.get(name, "")
                return name
        return ""


def _told(said: Any) -> str:
    """The text of a refusal, without what it tells of the request."""
    if isinstance(said, dict):
        said = [value for name, value in said.items() if name not in _ECHOED]
    if isinstance(said, list):
        return "\n".join(map(_told, said))
    return said if isinstance(said, str) else ""


def _field(said: Any, name: str) -> str:
    error = said.get("error", said) if isinstance(said, dict) else None
    value = error.get(name) if isinstance(error, dict) else None
    return value if isinstance(value, str) else ""
