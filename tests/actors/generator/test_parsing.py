"""Turns taken apart by vLLM's own parsers, without an engine; and which parser a template asks for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from actors.agent.chat import ChatTokenizer
from actors.gateway.reading import HermesReader, ReadCall, Reading
from actors.gateway.round_trip import ToolCarrying, tools_carried
from actors.generator.chat_formats import NONE, Choice, choose
from actors.generator.parsing import Parsing
from protocol.errors import GeneratorError
from protocol.messages import TakeApart
from tests.actors.gateway.history import TEMPLATE
from tests.actors.history.families import FAMILIES, TEMPLATES, Family
from tiny.model import build_tokenizer

MORE = {"llama-3.1": ["<|python_tag|>"]}  # of the vocabulary, though not of the template
TOOLS = json.dumps([{"type": "function", "function": {"name": "shell", "parameters": {"type": "object"}}}])


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("<tool_call>", Choice("hermes", NONE)),
        ("<think> <tool_call>", Choice("hermes", "qwen3")),
        ("<tool_call> <function= <parameter= <think>", Choice("qwen3_coder", "qwen3")),
        ("[TOOL_CALLS]", Choice("mistral", NONE)),
        ("<|python_tag|> parameters", Choice("llama3_json", NONE)),
        ("<tool_call> <arg_key> <arg_value> <think>", Choice("glm45", "glm45")),
        ("<｜tool▁calls▁begin｜> ```json", Choice("deepseek_v3", NONE)),
        ("<|start|> <|channel|> <|message|>", Choice("openai", "openai_gptoss")),
        ("nothing", Choice(NONE, NONE)),
        ("nothing but <think>", Choice(NONE, "deepseek_r1")),
    ],
)
def test_a_template_s_marks_name_its_parsers(template: str, expected: Choice) -> None:
    assert choose(template) == expected
    assert choose(template, "xlam", "none") == Choice("xlam", NONE)


@pytest.fixture(scope="module")
def model_dir(tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer whose template carries tools."""
    path = tmp_path_factory.mktemp("tools") / "model"
    shutil.copytree(tokenizer_dir, path)
    (path / "config.json").write_text('{"model_type": "qwen2"}')
    (path / "chat_template.jinja").write_text(TEMPLATE)
    return path


@pytest.mark.vllm
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what vLLM imports
async def test_vllm_s_parsers_take_turns_apart_as_ours_does(model_dir: Path) -> None:
    tokenizer = ChatTokenizer.load(model_dir)
    parsing = Parsing(model_dir)
    ours = HermesReader(tokenizer)
    stop = np.int32(tokenizer.stop_token_ids[0])
    prompt = tokenizer.encode_prompt([{"role": "user", "content": "go"}])
    call = '<tool_call>\n{"name": "shell", "arguments": {"command": "ls \\"a\\""}}\n</tool_call>'
    for text in (
        "hello",
        "",
        f"I look.\n{call}",
        f"{call}\n{call}",
        "<think>\nhm\n</think>\n\nhello",
        f"<think>x</think>{call}",
    ):
        for tools in (TOOLS, "[]"):
            ids = np.append(tokenizer.encode(text), stop)
            taken = parsing.answer(
                TakeApart(prompt_ids=prompt, token_ids=ids, tools=tools, tool_parser="auto", reasoning_parser="auto")
            )
            reading = await ours.read(prompt, ids, json.loads(tools))
            calls = [(name, json.loads(arguments)) for name, arguments in taken.calls]
            assert calls == [(each.name, json.loads(each.arguments)) for each in reading.calls], text
            assert taken.content.strip() == reading.content.strip(), text
            assert taken.reasoning.strip() == reading.reasoning.strip(), text
    with pytest.raises(GeneratorError, match="parser"):
        parsing.answer(
            TakeApart(prompt_ids=prompt, token_ids=ids, tools=TOOLS, tool_parser="unheard_of", reasoning_parser="none")
        )


class _InThisProcess:
    """vLLM's parsers without a socket between."""

    def __init__(self, model_dir: Path) -> None:
        self._parsing = Parsing(model_dir)

    async def read(self, prompt_ids: np.ndarray, token_ids: np.ndarray, tools: list[dict[str, Any]]) -> Reading:
        taken = self._parsing.answer(
            TakeApart(
                prompt_ids=prompt_ids,
                token_ids=token_ids,
                tools=json.dumps(tools),
                tool_parser="auto",
                reasoning_parser="auto",
            )
        )
        return Reading(content=taken.content, calls=[ReadCall(name=n, arguments=a) for n, a in taken.calls])


@pytest.mark.vllm
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what vLLM imports
@pytest.mark.parametrize(
    ("family", "most_calls"),
    [
        ("qwen2.5", None),
        ("qwen3", None),
        ("llama-3.1", 1),
        ("mistral", None),
        ("glm-4.5", None),
        ("deepseek-v3", None),
        ("deepseek-v3.1", None),
        ("gpt-oss", 1),
    ],
)
async def test_what_a_family_s_template_writes_is_read_back(
    family: str, most_calls: int | None, tmp_path: Path
) -> None:
    chosen = FAMILIES[family]
    saved = _harmony() if family == "gpt-oss" else build_tokenizer()
    texts = [control for control in chosen.controls if "tool▁" in control]  # added, and no special tokens of DeepSeek's
    saved.add_tokens([AddedToken(text, special=False, normalized=False) for text in texts])
    controls = [control for control in chosen.controls if control not in texts]
    saved.add_special_tokens(
        {"additional_special_tokens": [*controls, *MORE.get(family, ())], "eos_token": chosen.ends[0]}
    )
    saved.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    template = (TEMPLATES / f"{chosen.template}.jinja").read_text()
    if family.startswith("deepseek"):  # as those who want tools of it change its template
        template = template.replace(DEEPSEEK_SYSTEM, DEEPSEEK_SYSTEM + DEEPSEEK_TOOLS)
    (tmp_path / "chat_template.jinja").write_text(template)
    assert await tools_carried(_of(chosen, tmp_path), _InThisProcess(tmp_path)) == ToolCarrying(most_calls=most_calls)


DEEPSEEK_SYSTEM = "{{- bos_token + ns.system }}"
DEEPSEEK_TOOLS = "{%- for tool in tools or [] %}{{- '\\n' + tool | tojson }}{%- endfor %}"


def _harmony() -> PreTrainedTokenizerFast:
    """Single bytes and control tokens under the ids that gpt-oss has for them: vLLM's parser of it reads ids."""
    from openai_harmony import HarmonyEncodingName, load_harmony_encoding

    encoding = load_harmony_encoding(HarmonyEncodingName.HARMONY_GPT_OSS)
    vocabulary = {_spelled(byte): encoding.encode(chr(byte))[0] for byte in range(128)}
    controls = FAMILIES["gpt-oss"].controls
    vocabulary |= {control: encoding.encode(control, allowed_special="all")[0] for control in controls}
    base = Tokenizer(BPE(vocabulary, []))
    base.pre_tokenizer, base.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    return PreTrainedTokenizerFast(tokenizer_object=base)


def _spelled(byte: int) -> str:
    """As tokenizers of bytes write one in their vocabulary."""
    return chr(byte) if 33 <= byte <= 126 else chr(256 + (byte if byte <= 32 else 33))


def _of(family: Family, model_dir: Path) -> ChatTokenizer:
    """The same vocabulary that vLLM reads, with the family's beginning of a text."""
    config = json.loads((model_dir / "tokenizer_config.json").read_text())
    (model_dir / "tokenizer_config.json").write_text(
        json.dumps(config | ({"bos_token": family.bos} if family.bos else {}))
    )
    return ChatTokenizer.load(model_dir)


@pytest.mark.parametrize("family", ["deepseek-v3", "deepseek-v3.1"])
async def test_a_family_whose_template_leaves_tools_out_is_refused(family: str) -> None:
    tokenizer = FAMILIES[family].tokenizer()
    assert "does not show tools" in (await tools_carried(tokenizer, HermesReader(tokenizer))).why_not


async def test_templates_that_cannot_be_read_back_say_why(tokenizer: ChatTokenizer) -> None:
    def under(template: str) -> ChatTokenizer:
        return tokenizer.with_template(template, "<|im_end|>", ["<|im_start|>", "<|im_end|>"])

    good = under(TEMPLATE)
    assert await tools_carried(good, HermesReader(good)) == ToolCarrying()
    assert "does not show tools" in (await tools_carried(tokenizer, HermesReader(tokenizer))).why_not
    other = under(TEMPLATE.replace("<tool_call>", "<call>"))
    assert "read back as []" in (await tools_carried(other, HermesReader(other))).why_not
    refusing = under("{% if messages[-1].role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}" + TEMPLATE)
    assert "takes no tool calls" in (await tools_carried(refusing, HermesReader(refusing))).why_not
    silent = under(TEMPLATE.replace("{{ m['content'] }}", "{% if m.role != 'tool' %}{{ m['content'] }}{% endif %}"))
    assert "results of tool calls" in (await tools_carried(silent, HermesReader(silent))).why_not
