"""`[model]`: the policy."""

from __future__ import annotations

import json
from typing import Literal

from pydantic import JsonValue, field_validator

from protocol.section import Count, Section


class ModelSettings(Section):
    """The policy."""

    path: str = "assets/tiny"
    """Hugging Face model directory that the run starts from (weights, tokenizer, chat template), or the URL of one that
    fsspec knows (`s3://...`)."""
    chat_template_kwargs: str = ""
    """What the chat template is told besides the conversation, a JSON object: `{"enable_thinking": false}`."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the generators' weights and of the learner's compute copy; auto: float32 on CPU, bfloat16 on GPU."""
    max_context: Count = 2048
    """Most tokens of one episode, prompt and observations included."""

    @field_validator("chat_template_kwargs")
    @classmethod
    def _is_an_object(cls, value: str) -> str:
        if value and not isinstance(_json(value), dict):
            raise ValueError('expected a JSON object, as {"enable_thinking": false}')
        return value

    def template_values(self) -> dict[str, JsonValue]:
        """`chat_template_kwargs`, read."""
        values = _json(self.chat_template_kwargs) if self.chat_template_kwargs else {}
        assert isinstance(values, dict), "checked where it was set"
        return values


def _json(text: str) -> JsonValue:
    try:
        value: JsonValue = json.loads(text)
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from error
    return value
