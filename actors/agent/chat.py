"""A model directory's tokenizer and chat template, without transformers (whose import costs torch and 400 MB).

What a template writes around a message is found by rendering placeholders, once; the messages themselves are data: text
that spells a control token (`<|im_start|>`) is encoded as its characters and never becomes that token.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import numpy as np
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import AddedToken, Tokenizer

from actors.agent.commands import leaves_thought_open
from protocol.errors import ConfigError, border

Chat = list[dict[str, Any]]
"""Messages as chat templates take them: {"role": ..., "content": ...}."""

_SAMPLED = "SampledTurn"
_GIVEN = "GivenText"
_SPECIAL_NAMES = ("bos_token", "eos_token", "pad_token", "unk_token")


class ChatTokenizer:
    """Text <-> ids, and what the chat template puts around messages.

    Args:
        tokenizer: the tokenizer proper; switched between its two readings of control tokens, so not thread-safe.
        template: Jinja source of the chat template.
        specials: `eos_token` and the like, for the template, and what else it is told.
        stop_token_ids: tokens that end an assistant turn.

    Attributes:
        controls: spellings of the control tokens.
        takes_system: the template knows system messages; elsewhere their text goes before the one that follows.
    """

    def __init__(
        self, tokenizer: Tokenizer, template: str, specials: Mapping[str, object], stop_token_ids: Sequence[int]
    ) -> None:
        self._tokenizer = tokenizer
        with border(ConfigError, "a chat template that Jinja can read"):
            self._template = _environment().from_string(template)
        self._specials = dict(specials)
        self.stop_token_ids = sorted(set(stop_token_ids))
        controls = [t.content for t in tokenizer.get_added_tokens_decoder().values() if t.special]
        self.controls = controls
        self._control = re.compile("|".join(map(re.escape, controls)) or r"(?!)")
        self.takes_system = self._renders([{"role": "system", "content": _GIVEN}, {"role": "user", "content": "-"}])
        self._around_answer = lru_cache(maxsize=8)(self._render_around_answer)

    @staticmethod
    def load(path: Path, template_values: Mapping[str, object] | None = None) -> ChatTokenizer:
        """Read a Hugging Face model directory; the chat template is told `template_values`, too.

        Raises `ConfigError` naming the file that is missing or unusable.
        """
        config = _read_json(path / "tokenizer_config.json")
        if not (path / "tokenizer.json").is_file():
            raise ConfigError(f"{path}: expected a tokenizer.json (a fast tokenizer); convert the model's tokenizer")
        with border(ConfigError, f"a readable {path}/tokenizer.json", kind="tokenizer"):
            tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
        specials = {name: text for name in _SPECIAL_NAMES if (text := _token_text(config.get(name)))}
        stops = _eos_ids(_read_json(path / "generation_config.json", required=False))
        stops += [i for i in [tokenizer.token_to_id(specials.get("eos_token", ""))] if i is not None]
        if not stops:
            raise ConfigError(f"{path}: neither tokenizer_config.json nor generation_config.json names an eos token")
        return ChatTokenizer(tokenizer, read_template(path, config), {**(template_values or {}), **specials}, stops)

    def with_template(self, template: str, stop: str, controls: Sequence[str]) -> ChatTokenizer:
        """The same vocabulary under another template, whose control tokens (`stop` is one) are added where missing."""
        tokenizer = Tokenizer.from_str(self._tokenizer.to_str())
        tokenizer.add_special_tokens([AddedToken(control, special=True, normalized=False) for control in controls])
        return ChatTokenizer(tokenizer, template, {"eos_token": stop}, [_id(tokenizer, stop)])

    def control_id(self, control: str) -> int:
        """Id of a control token."""
        return _id(self._tokenizer, control)

    @property
    def vocab_size(self) -> int:
        """Number of token ids, added tokens included."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    @functools.cached_property
    def most_chars(self) -> int:
        """Characters of the longest token: a text of more than so many a token cannot have fewer tokens."""
        return max(map(len, self._tokenizer.get_vocab(with_added_tokens=True)), default=1)

    @functools.cached_property
    def opens_thought(self) -> bool:
        """Whether the template begins a thought for every model turn: then only `</think>` is sampled."""
        return leaves_thought_open(self.render([{"role": "user", "content": "-"}]))

    def decode(self, ids: np.ndarray | Sequence[int], *, keep_special: bool = False) -> str:
        """Text of `ids`; what is not UTF-8 is replaced."""
        return self._tokenizer.decode(list(map(int, ids)), skip_special_tokens=not keep_special)

    def encode(self, text: str) -> np.ndarray:
        """Ids (int32) of `text` in which a control token's spelling is just text."""
        self._tokenizer.encode_special_tokens = True
        try:
            return _ids(self._tokenizer, text)
        finally:
            self._tokenizer.encode_special_tokens = False

    def encode_rendered(self, text: str) -> np.ndarray:
        """Ids (int32) of what a template wrote, in which a control token's spelling is that token."""
        return _ids(self._tokenizer, text)

    def offsets_rendered(self, text: str) -> np.ndarray:
        """Where in `text` each of the tokens of `encode_rendered` begins, int64 [tokens], in characters."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return np.array([start for start, _ in encoding.offsets], np.int64)

    def render(self, messages: Chat, *, tools: list[dict[str, Any]] | None = None, generate: bool = True) -> str:
        """The template's text of a conversation; raises `ConfigError` if the template refuses it."""
        with border(ConfigError, f"the chat template to take roles {[m['role'] for m in messages]}"):
            return self._template.render(
                messages=messages, tools=tools, add_generation_prompt=generate, **self._specials
            )

    def encode_prompt(self, messages: Chat, tools: list[dict[str, Any]] | None = None) -> np.ndarray:
        """Ids (int32) of the opening of a conversation, up to where the assistant speaks. The last message is data.

        Where the template knows no system message, its text goes before the one that follows it.
        """
        *first, last = messages if self.takes_system else without_system(messages)
        text = self.render([*first, {**last, "content": _GIVEN}], tools=tools)
        before, _, after = text.rpartition(_GIVEN)
        return self._encode_around(before, last["content"], after)

    def encode_answer(self, role: str, content: str, last_sampled: int) -> np.ndarray:
        """Ids (int32) that follow a sampled assistant turn: its close, a message of `role`, the next turn's opening.

        `last_sampled` is the id that the turn ended with: where it is the close itself, the close is not repeated.
        """
        before, after = self._around_answer(role)
        ids = self._encode_around(before, content, after)
        return ids[1:] if last_sampled in self.stop_token_ids and ids[0] == last_sampled else ids

    def _renders(self, messages: Chat) -> bool:
        try:
            return _GIVEN in self.render(messages)
        except ConfigError:
            return False

    def _render_around_answer(self, role: str) -> tuple[str, str]:
        turn = {"role": "assistant", "content": _SAMPLED}
        text = self.render([{"role": "user", "content": "-"}, turn, {"role": role, "content": _GIVEN}])
        before, found, after = text.partition(_SAMPLED)[2].partition(_GIVEN)
        if not found:
            raise ConfigError(f"the chat template leaves out a message of role {role!r} that follows an assistant turn")
        return before, after

    def _encode_around(self, before: str, content: str, after: str) -> np.ndarray:
        if self._control.search(content) is None:
            return _ids(self._tokenizer, before + content + after)
        parts = [_ids(self._tokenizer, before), self.encode(content), _ids(self._tokenizer, after)]
        return np.concatenate(parts)


def without_system(messages: Chat) -> Chat:
    """The conversation with the system text at the head of the message after it."""
    first, *others = messages
    if first["role"] != "system":
        return messages
    merged = {**others[0], "content": f"{first['content']}\n\n{others[0]['content']}"}
    return [merged, *others[1:]]


def _id(tokenizer: Tokenizer, token: str) -> int:
    found: int | None = tokenizer.token_to_id(token)
    assert found is not None, f"no token {token}"
    return found


def _ids(tokenizer: Tokenizer, text: str) -> np.ndarray:
    return np.array(tokenizer.encode(text, add_special_tokens=False).ids, np.int32)


def _read_json(path: Path, *, required: bool = True) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if required:
            raise ConfigError(f"{path} does not exist: expected a Hugging Face model directory") from None
        return {}
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def read_template(path: Path, config: Mapping[str, Any] | None = None) -> str:
    """A model directory's: a file of its own, else the configuration's `chat_template` (a string, or named ones:
    `default` counts). Raises `ConfigError`."""
    config = _read_json(path / "tokenizer_config.json") if config is None else config
    if (path / "chat_template.jinja").is_file():
        with border(ConfigError, f"text in {path}/chat_template.jinja"):
            return (path / "chat_template.jinja").read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        named = [t for t in template if isinstance(t, dict) and t.get("name") == "default"]
        template = named[-1].get("template") if named else None
    if not isinstance(template, str):
        raise ConfigError(f"{path}: no chat template in chat_template.jinja nor tokenizer_config.json")
    return template


def _token_text(token: Any) -> str:
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else ""


def _eos_ids(generation: Mapping[str, Any]) -> list[int]:
    eos = generation.get("eos_token_id")
    found = eos if isinstance(eos, list) else [] if eos is None else [eos]
    if not all(isinstance(i, int) and not isinstance(i, bool) for i in found):
        raise ConfigError(f"eos_token_id of generation_config.json: expected ids of tokens, got {str(eos)[:100]}")
    return found


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}` marks assistant text in some templates; here it only passes its body on."""

    tags = {"generation"}  # noqa: RUF012  (the name and type that Jinja asks for)

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    """What chat templates are written for, as transformers sets it up; a template is data, so it runs sandboxed."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_template_error
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _raise_template_error(message: str) -> None:
    raise jinja2.TemplateError(message)
