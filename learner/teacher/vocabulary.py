"""Whether an endpoint's tokenizer is the run's: else log-probs of the same ids would be of other tokens.

A server does not hand out its vocabulary. It spells every id (vLLM's `/detokenize`), each between two line feeds, and
cuts up a text (`/tokenize`) that holds every kind of byte, among which spelling alone cannot tell: a byte that is no
character by itself is spelt like any other.
"""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from learner.teacher.endpoint import TeacherEndpoint
from protocol.errors import ConfigError, LearnerError, border

_AT_ONCE = 1024
_CLEANED = {" " + mark: mark for mark in (".", "?", "!", ",")} | {" ' ": "'"}
_CLEANED |= {f" {ending}": ending for ending in ("n't", "'m", "'s", "'ve", "'re")}


async def check_vocabulary(endpoint: TeacherEndpoint, model: Path) -> None:
    """The endpoint's tokenizer is that of the model directory.

    Raises `ConfigError` where it is not, or cannot be asked; `LearnerError` as `TeacherEndpoint.logprobs`.
    """
    with border(ConfigError, f"{model / 'tokenizer.json'} to be a tokenizer", kind="tokenizer"):
        own: Any = Tokenizer.from_file(str(model / "tokenizer.json"))
    root = endpoint.address.removesuffix("/v1")

    async def asked(path: str, body: dict[str, Any], name: str) -> Any:
        try:
            return (await endpoint.ask("POST", f"{root}/{path}", {"model": endpoint.model} | body))[name]
        except (KeyError, TypeError) as error:
            raise _unknown(endpoint, f"/{path} gave no {error}") from None
        except LearnerError as error:
            if error.kind != "teacher_refused":
                raise
            raise _unknown(endpoint, str(error)) from None

    async def spelt(ids: list[int]) -> None:
        line_feed = own.encode("\n", add_special_tokens=False).ids
        spread = [*line_feed, *(one for token in ids for one in (token, *line_feed))]
        mine = own.decode(spread, skip_special_tokens=False)
        theirs = await asked("detokenize", {"tokens": spread}, "prompt")
        if theirs not in (mine, _clean(mine)):
            raise _other(endpoint, model, f"ids {ids[0]} to {ids[-1]} are other tokens there")

    known = sorted(own.get_vocab(with_added_tokens=True).values())
    for start in range(0, len(known), _AT_ONCE):
        await spelt(known[start : start + _AT_ONCE])
    text = _every_byte()
    cut = await asked("tokenize", {"prompt": text, "add_special_tokens": False}, "tokens")
    if cut != own.encode(text, add_special_tokens=False).ids:
        raise _other(endpoint, model, "it cuts up text in another way")


def _every_byte() -> str:
    """Every ASCII character that can be seen, and characters whose UTF-8 has every byte that UTF-8 has."""
    short = [*range(0x20, 0x7F), *range(0x80, 0x800, 33), *range(0x80, 0xC0)]
    long = [*range(0x800, 0xD800, 0x3F1), *range(0xE000, 0x10000, 0x3F1), *range(0x10000, 0x110000, 0xFFF1)]
    text = "".join(map(chr, [*short, *long]))
    return unicodedata.normalize("NFC", text)  # as a server may do with what it is sent


def _clean(text: str) -> str:
    """As transformers does for tokenizers that ask for it (`clean_up_tokenization_spaces`)."""
    for spaced, cleaned in _CLEANED.items():
        text = text.replace(spaced, cleaned)
    return text


def _other(endpoint: TeacherEndpoint, model: Path, how: str) -> ConfigError:
    return ConfigError(
        f"--learner.loss.reference-endpoint {endpoint.address}: its tokenizer is not that of {model} ({how}): "
        "log-probs of the same token ids would be of other tokens. Take a model of the same tokenizer",
        kind="tokenizer",
    )


def _unknown(endpoint: TeacherEndpoint, why: str) -> ConfigError:
    return ConfigError(
        f"--learner.loss.reference-endpoint {endpoint.address}: its tokenizer cannot be compared with the run's, which "
        f"takes /tokenize and /detokenize of a vLLM server ({why})",
        kind="tokenizer",
    )
