"""Scaffolds: how a model is addressed and how its turns are read. `make_scaffold` knows them all."""

from __future__ import annotations

from actors.agent.chat import ChatTokenizer
from actors.agent.scaffold import Scaffold
from actors.agent.scaffolds.json_calls import JsonCalls
from actors.agent.scaffolds.react import React
from protocol.config import EpisodeSettings


def make_scaffold(settings: EpisodeSettings, tokenizer: ChatTokenizer) -> Scaffold:
    """The scaffold that the settings name. Raises `ConfigError` when the chat template cannot hold its conversation."""
    scaffold: Scaffold = (
        React(settings.prompt, opens_thought=tokenizer.opens_thought)
        if settings.scaffold == "react"
        else JsonCalls(settings.prompt, tokenizer)
    )
    tokenizer.encode_prompt(scaffold.open("issue"), scaffold.tools)
    tokenizer.encode_answer(scaffold.answer_role, "observation", -1)
    return scaffold
