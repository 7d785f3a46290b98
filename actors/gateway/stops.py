"""Stop strings. Sampling goes from left to right: a turn cut after a token is what stopping there would have given."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from actors.agent.chat import ChatTokenizer
from actors.policy import Sampled


def cut_at(stops: Sequence[str], sampled: Sampled, tokenizer: ChatTokenizer) -> tuple[Sampled, str | None]:
    """A turn up to and with the token that completes the first stop string, and that string; else all of it."""
    if not stops:
        return sampled, None
    ids = sampled.token_ids.tolist()
    text = tokenizer.decode(ids)
    found = [(text.index(stop), stop) for stop in stops if stop in text]
    if not found:
        return sampled, None
    stop = min(found)[1]
    low, high = 1, len(ids)  # the fewest tokens whose text holds it
    while low < high:
        middle = (low + high) // 2
        if stop in tokenizer.decode(ids[:middle]):
            high = middle
        else:
            low = middle + 1
    cut = msgspec.structs.replace(
        sampled,
        token_ids=sampled.token_ids[:low],
        logprobs=sampled.logprobs[:low],
        versions=sampled.versions[:low],
        finish_reason="stop",
    )
    return cut, stop
