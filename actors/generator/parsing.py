"""Takes sampled turns apart by vLLM's own parsers, in the process that has loaded vLLM anyway."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from actors.agent.chat import read_template
from actors.generator.chat_formats import AUTO, HARMONY, NONE, THOUGHT_MARKS, Choice, choose
from protocol.errors import GeneratorError
from protocol.messages import TakeApart, TakenApart

_OPENING = 8  # tokens at a prompt's end in which a template may begin the reasoning


class Parsing:
    """Of one model. Loads the parsers at the first request; not thread-safe.

    Args:
        model_dir: Hugging Face directory.
    """

    def __init__(self, model_dir: Path) -> None:
        self._model_dir = model_dir
        self._tokenizer: Any = None  # vLLM's own
        self._parsers: dict[Choice, Any] = {}

    def answer(self, message: TakeApart) -> TakenApart:
        """Raises `GeneratorError` (kind: refused) for a parser that there is not, or that fails."""
        try:
            return self._answer(message)
        except GeneratorError:
            raise
        except Exception as error:  # parsers raise what they like at what a model wrote
            raise GeneratorError(f"vLLM's parser: {type(error).__name__}: {error}", kind="refused") from error

    def _answer(self, message: TakeApart) -> TakenApart:
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

        if self._tokenizer is None:
            from vllm.tokenizers import get_tokenizer

            self._tokenizer = get_tokenizer(self._model_dir)
        tools: list[dict[str, Any]] = json.loads(message.tools)
        choice = choose(read_template(self._model_dir), message.tool_parser, message.reasoning_parser)
        ids = message.token_ids.tolist()
        if message.reasoning_parser == AUTO and choice.tool_parser != HARMONY and not self._thinks(message):
            choice = choice._replace(reasoning_parser=NONE)
        fields: dict[str, Any] = {"messages": [{"role": "user", "content": "-"}], "model": "-"}
        if tools:
            fields |= {"tools": tools, "tool_choice": "auto"}
        request = ChatCompletionRequest.model_validate(fields)
        kind = self._parser(choice)
        if kind is None:
            return TakenApart(content=self._tokenizer.decode(ids, skip_special_tokens=True))
        parser = kind(self._tokenizer, request.tools)
        parser.set_prompt_token_ids(message.prompt_ids.tolist())
        request = parser.adjust_request(request)
        text = self._tokenizer.decode(ids, skip_special_tokens=request.skip_special_tokens)
        text = self._without_stop(text, ids, request.skip_special_tokens)
        reasoning, content, calls = parser.parse(
            text, request, enable_auto_tools=bool(tools), model_output_token_ids=ids
        )
        return TakenApart(
            content=content or "",
            reasoning=reasoning or "",
            calls=[(call.name, call.arguments) for call in calls or []],
            num_reasoning_tokens=parser.count_reasoning_tokens(ids),
        )

    def _thinks(self, message: TakeApart) -> bool:
        """Whether a turn holds reasoning at all. Parsers of models that may think take a turn without any mark for
        reasoning that was cut."""
        shown = [*message.prompt_ids[-_OPENING:].tolist(), *message.token_ids.tolist()]
        text = self._tokenizer.decode(shown, skip_special_tokens=False)
        return any(mark in text for mark in THOUGHT_MARKS)

    def _parser(self, choice: Choice) -> Any:
        """vLLM's parser class; None where nothing is to be read."""
        if choice not in self._parsers:
            from vllm.parser import ParserManager

            self._parsers[choice] = ParserManager.get_parser(
                tool_parser_name=None if choice.tool_parser == NONE else choice.tool_parser,
                reasoning_parser_name=None if choice.reasoning_parser == NONE else choice.reasoning_parser,
                enable_auto_tools=True,
                is_harmony=choice.tool_parser == HARMONY,
                tokenizer=self._tokenizer,
            )
        return self._parsers[choice]

    def _without_stop(self, text: str, ids: list[int], skipped: bool) -> str:
        """Where control tokens are shown to the parser, the one that ended the turn is none of its business."""
        if skipped or not ids or ids[-1] not in self._tokenizer.all_special_ids:
            return text
        return text.removesuffix(self._tokenizer.decode(ids[-1:], skip_special_tokens=False))
