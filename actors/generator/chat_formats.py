"""Which of vLLM's parsers reads what a chat template writes, told by the template's own marks. Pure."""

from __future__ import annotations

from typing import NamedTuple


class Format(NamedTuple):
    """One way of writing tool calls."""

    marks: tuple[str, ...]  # all of them stand in its templates
    tool_parser: str
    reasoning_parser: str  # of the same family; used where the template knows reasoning


NONE = "none"
AUTO = "auto"
HARMONY = "openai"
FORMATS = (
    Format(("<|channel|>", "<|message|>"), HARMONY, "openai_gptoss"),
    Format(("[TOOL_CALLS]",), "mistral", "mistral"),
    Format(("<|python_tag|>",), "llama3_json", NONE),
    Format(("<|start_header_id|>", '"parameters": '), "llama3_json", NONE),
    Format(("<|tool_calls_section_begin|>",), "kimi_k2", "kimi_k2"),
    Format(("<｜tool▁calls▁begin｜>", "```json"), "deepseek_v3", "deepseek_r1"),
    Format(("<｜tool▁calls▁begin｜>",), "deepseek_v31", "deepseek_v3"),
    Format(("<minimax:tool_call>",), "minimax_m2", "minimax_m2"),
    Format(("<seed:tool_call>",), "seed_oss", "seed_oss"),
    Format(("<arg_key>", "<arg_value>"), "glm45", "glm45"),
    Format(("<function=", "<parameter="), "qwen3_coder", "qwen3"),
    Format(("<tool_call>",), "hermes", "qwen3"),
)
"""The first that fits counts. Names are vLLM's."""
THOUGHT_MARKS = ("<think>", "</think>", "<seed:think>", "</seed:think>", "[THINK]", "◁think▷")
_REASONING_MARKS = (*THOUGHT_MARKS, "reasoning_content", "<|channel|>")


class Choice(NamedTuple):
    """Parsers by vLLM's names; `none`: what would be read so is left in the text."""

    tool_parser: str
    reasoning_parser: str


def choose(template: str, tool_parser: str = AUTO, reasoning_parser: str = AUTO) -> Choice:
    """The parsers for a template; names other than `auto` are kept."""
    found = next((each for each in FORMATS if all(mark in template for mark in each.marks)), None)
    reasons = any(mark in template for mark in _REASONING_MARKS)
    if tool_parser == AUTO:
        tool_parser = found.tool_parser if found else NONE
    if reasoning_parser == AUTO:
        family = found.reasoning_parser if found else "deepseek_r1"
        reasoning_parser = family if reasons else NONE
    return Choice(tool_parser, reasoning_parser)
