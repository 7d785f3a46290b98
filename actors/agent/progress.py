"""How far an episode is, as the fold of its journal: what happens now and what is read back go the same way. Pure."""

from __future__ import annotations

import msgspec
import numpy as np

from actors.agent.chat import ChatTokenizer
from actors.agent.episode import Episode, Limits, Step
from actors.agent.files import OpenFile
from actors.agent.journal import Answered, Entry, Journal, Opened, Over, Turned
from actors.agent.prefix import Prefix
from actors.agent.scaffold import Scaffold
from actors.agent.tokens import History
from protocol.config import EpisodeSettings
from protocol.errors import AgentError
from protocol.messages import EndReason, FinishReason


class Progress:
    """Of one episode.

    Attributes:
        history: its tokens.
        steps: the turns that were answered, or that need no answer.
        unanswered: a turn whose command is to be carried out, or was begun.
        observation: an answer that is not in the history yet.
        open_file: the tools' state.
        elapsed_s: of its wall time, when it was last heard of.
        ended: why it is over, if it is.
    """

    def __init__(
        self,
        tokenizer: ChatTokenizer,
        scaffold: Scaffold,
        settings: EpisodeSettings,
        limits: Limits,
        prefix: Prefix,
        journal: Journal,
    ) -> None:
        self.history = History(tokenizer)
        self.steps: list[Step] = []
        self.unanswered: tuple[Step, FinishReason] | None = None
        self.observation: str | None = None
        self.open_file: OpenFile | None = None
        self.elapsed_s = 0.0
        self.ended: EndReason | None = None
        self.prefix = prefix
        self._journal = journal
        self._tokenizer, self._scaffold, self._settings, self._limits = tokenizer, scaffold, settings, limits
        self._errors_in_a_row = 0

    def open(self, issue: str) -> None:
        """Begin, and come as far as the journal goes.

        Raises `AgentError` (kind: resume) if it is not one of this episode.
        """
        self.history.open(self._scaffold.open(issue), self._scaffold.tools)
        opened = Opened(token_ids=self.history.token_ids.tobytes())
        if not self._journal.past:
            self._journal.add(opened)
        elif self._journal.past[0] != opened:
            raise AgentError("the episode began with another prompt than its task has now", kind="resume")
        for entry in self._journal.past[1:]:
            self._fold(entry)

    def add(self, entry: Turned | Answered | Over) -> None:
        """Something happened: it is written down, then it counts."""
        self._journal.add(entry)
        self._fold(entry)

    def _fold(self, entry: Entry) -> None:
        match entry:
            case Turned():
                self._turn(entry)
            case Answered():
                self._answer(entry)
            case Over(reason=reason):
                self.ended = reason
            case _:
                what = type(entry).__name__
                raise AgentError(f"expected a turn, its answer or the end, got an entry {what}", kind="resume")

    def observe(self) -> EndReason | None:
        """Add the observation to the history, if another turn may follow; else why not. It is added whole or not."""
        if self.observation is None:
            return None
        if len(self.steps) >= self._limits.max_turns:
            return "max_turns"
        if self.elapsed_s >= self._limits.wall_time_s:
            return "wall_time"
        ids = self._encode(self.observation)
        if len(self.history) + len(ids) >= self._limits.max_context:
            return "context"
        self._append(ids)
        return None

    def finished(self) -> Episode:
        """The episode, which has ended."""
        assert self.ended is not None
        return Episode(history=self.history, steps=self.steps, end_reason=self.ended)

    def _turn(self, turned: Turned) -> None:
        if self.observation is not None:
            self._append(self._encode(self.observation))
        sampled = turned.sampled
        self.prefix.saw(sampled.versions)
        start, end = self.history.append_sampled(sampled)
        step = Step(
            start=start,
            end=end,
            text=self._tokenizer.decode(sampled.token_ids),
            cached_version=turned.cached_version,
            generate_s=turned.generate_s,
            at=turned.at,
        )
        self.elapsed_s = turned.elapsed_s
        if turned.is_last:
            self.steps.append(step)
            self.ended = "context"
        else:
            self.unanswered = (step, turned.finish_reason)

    def _answer(self, answered: Answered) -> None:
        if self.unanswered is None:
            raise AgentError("expected a turn before its answer", kind="resume")
        (step, _), self.unanswered = self.unanswered, None
        result = {"observation": answered.text, "format_error": answered.format_error}
        self.steps.append(msgspec.structs.replace(step, **result, execute_s=answered.execute_s))
        self.observation, self.open_file, self.elapsed_s = answered.text, answered.open_file, answered.elapsed_s
        self._errors_in_a_row = self._errors_in_a_row + 1 if answered.format_error else 0
        if answered.submitted:
            self.ended = "submitted"
        elif self._errors_in_a_row >= self._settings.max_format_errors:
            self.ended = "format_errors"

    def _encode(self, observation: str) -> np.ndarray:
        return self.history.encode_observation(self._scaffold.answer_role, observation)

    def _append(self, ids: np.ndarray) -> None:
        self.history.append_observation(ids)
        self.observation = None
