"""Model families: a transcription of each one's chat template, its control tokens, and how the model writes a turn."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tokenizers import AddedToken, Tokenizer

from actors.agent.chat import ChatTokenizer
from actors.history.matching import Message
from tiny.model import build_tokenizer

TEMPLATES = Path(__file__).with_name("templates")


@dataclass(frozen=True)
class Family:
    """How a family speaks. `write` gives what the model samples for a message, without the token that ends the turn.

    `ends` has the tokens that end a turn: of an answer, of a turn that calls tools.
    """

    template: str
    controls: Sequence[str]
    ends: tuple[str, str]
    write: Callable[[Message], str]
    bos: str = ""

    @cache  # noqa: B019  (there are eight)
    def tokenizer(self) -> ChatTokenizer:
        """Its template and control tokens over the tiny vocabulary."""
        base = Tokenizer.from_str(build_tokenizer().backend_tokenizer.to_str())
        base.add_special_tokens([AddedToken(control, special=True, normalized=False) for control in self.controls])
        stops = [base.token_to_id(end) for end in dict.fromkeys(self.ends)]
        source = (TEMPLATES / f"{self.template}.jinja").read_text()
        return ChatTokenizer(base, source, {"bos_token": self.bos, "eos_token": self.ends[0]}, stops)

    def sampled(self, message: Message) -> str:
        """The text of the whole turn, the token that ends it included."""
        return self.write(message) + self.ends["tool_calls" in message]


def _calls(message: Message) -> list[tuple[str, str]]:
    """Names, and arguments as a model spells them: without the spaces that templates put."""
    return [
        (call["function"]["name"], json.dumps(call["function"]["arguments"], separators=(",", ":")))
        for call in message.get("tool_calls", ())
    ]


def _hermes(message: Message) -> str:
    thought = message.get("reasoning_content", "")
    said = [f"<think>\n{thought}\n</think>\n\n{message['content']}" if thought else message["content"]]
    said += [f'<tool_call>\n{{"name":"{name}","arguments":{text}}}\n</tool_call>' for name, text in _calls(message)]
    return "\n".join(part for part in said if part)


def _llama(message: Message) -> str:
    return message["content"] + "".join(f'{{"name":"{n}","parameters":{t}}}' for n, t in _calls(message))


def _mistral(message: Message) -> str:
    calls = ",".join(f'{{"name":"{n}","arguments":{t}}}' for n, t in _calls(message))
    return message["content"] + (f"[TOOL_CALLS][{calls}]" if calls else "")


def _glm(message: Message) -> str:
    said = f"\n<think>{message.get('reasoning_content', '')}</think>"
    said += f"\n{message['content']}" if message["content"] else ""
    for call in message.get("tool_calls", ()):
        pairs = call["function"]["arguments"].items()
        said += f"\n<tool_call>{call['function']['name']}"
        said += "".join(f"\n<arg_key>{k}</arg_key>\n<arg_value>{v}</arg_value>" for k, v in pairs) + "\n</tool_call>"
    return said


def _deepseek(message: Message) -> str:
    calls = "\n".join(
        f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{n}\n```json\n{t}\n```<｜tool▁call▁end｜>"
        for n, t in _calls(message)
    )
    return message["content"] + (f"<｜tool▁calls▁begin｜>{calls}<｜tool▁calls▁end｜>" if calls else "")


def _deepseek_31(message: Message) -> str:
    calls = "".join(f"<｜tool▁call▁begin｜>{n}<｜tool▁sep｜>{t}<｜tool▁call▁end｜>" for n, t in _calls(message))
    return message["content"] + (f"<｜tool▁calls▁begin｜>{calls}<｜tool▁calls▁end｜>" if calls else "")


def _harmony(message: Message) -> str:
    thought = message.get("reasoning_content", "")
    said = f"<|channel|>analysis<|message|>{thought}<|end|><|start|>assistant" if thought else ""
    for name, text in _calls(message):
        return f"{said} to=functions.{name}<|channel|>commentary json<|message|>{text}"
    return f"{said}<|channel|>final<|message|>{message['content']}"


_CHATML = ("<|im_start|>", "<|im_end|>")
_DEEPSEEK = (
    *("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<｜tool▁calls▁begin｜>"),
    *(
        "<｜tool▁calls▁end｜>",
        "<｜tool▁call▁begin｜>",
        "<｜tool▁call▁end｜>",
        "<｜tool▁sep｜>",
        "<｜tool▁outputs▁begin｜>",
    ),
    *("<｜tool▁outputs▁end｜>", "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>"),
)
_EOS, _BOS = "<｜end▁of▁sentence｜>", "<｜begin▁of▁sentence｜>"
FAMILIES = {
    "qwen2.5": Family("qwen2.5", _CHATML, ("<|im_end|>", "<|im_end|>"), _hermes),
    "qwen3": Family("qwen3", _CHATML, ("<|im_end|>", "<|im_end|>"), _hermes),
    "llama-3.1": Family(
        "llama-3.1",
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>"),
        ("<|eot_id|>", "<|eot_id|>"),
        _llama,
        "<|begin_of_text|>",
    ),
    "llama-3.1-eom": Family(
        "llama-3.1",
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>"),
        ("<|eot_id|>", "<|eom_id|>"),
        _llama,
        "<|begin_of_text|>",
    ),
    "mistral": Family(
        "mistral",
        (
            *("<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[AVAILABLE_TOOLS]"),
            *("[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
        ),
        ("</s>", "</s>"),
        _mistral,
        "<s>",
    ),
    "glm-4.5": Family(
        "glm-4.5",
        ("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
        ("<|user|>", "<|observation|>"),
        _glm,
    ),
    "deepseek-v3": Family("deepseek-v3", _DEEPSEEK, (_EOS, _EOS), _deepseek, _BOS),
    "deepseek-v3.1": Family("deepseek-v3.1", _DEEPSEEK, (_EOS, _EOS), _deepseek_31, _BOS),
    "gpt-oss": Family(
        "gpt-oss",
        ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>", "<|call|>"),
        ("<|return|>", "<|call|>"),
        _harmony,
    ),
}
