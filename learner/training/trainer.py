"""One optimizer step: samples in, new weights and figures out.

Every rank holds all samples of the batch, so every rank computes the same plan and the same normaliser; what crosses
ranks is what DeepSpeed and Ulysses exchange, the sums of the diagnostics, and one sum per document where the objective
looks at whole sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from learner.objectives.loss import token_losses
from learner.objectives.parts.averaging import normaliser
from learner.objectives.parts.objective import TokenTensors
from learner.objectives.parts.ratios import old_policy
from learner.objectives.registry import averaging_of, checked_objective, loss_settings, needs_reference
from learner.objectives.samples import Sample
from learner.packing import plan_bins, row_length, used_share
from learner.ranks.learned import LearnedLogprobs
from learner.schedule import learning_rate
from learner.training.diagnostics import Diagnostics
from learner.training.micro_batch import MicroBatch, collate
from learner.training.model import Policy
from protocol.config import Settings
from protocol.errors import LearnerError


class Trainer:
    """Runs steps on this rank; all ranks call `step` with the same samples.

    Attributes:
        logprobs: of the last step's samples, as the policy before its update saw their targets (float32 [tokens] each).
    """

    def __init__(self, policy: Policy, settings: Settings) -> None:
        self.policy = policy
        self.group = policy.group
        self.settings = settings
        self.loss = loss_settings(settings)
        self.objective = checked_objective(self.loss)
        self.averaging = averaging_of(self.loss)
        self.budget = settings.micro_batch_tokens
        self.logprobs: list[np.ndarray] = []

    def step(self, samples: Sequence[Sample], version: int) -> dict[str, float]:
        """Make version `version + 1` out of `version`; returns the step's figures, the same on every rank.

        Raises:
            LearnerError: the loss or the gradient is not finite (kind `not_finite`), or a rank is gone.
        """
        lengths = [len(sample) for sample in samples]
        plan = plan_bins(lengths, self.group.data_parallel, self.budget, self.policy.attention_length)
        divisor = normaliser(self.averaging, [s.weights for s in samples], [s.share for s in samples])
        assert divisor > 0, "a batch without a trained token does not reach the trainer"
        most_documents = max(len(members) for row in plan for members in row)
        diagnostics = Diagnostics(self.group.device)
        learned = LearnedLogprobs(self.group, plan, lengths)
        self.policy.engine.train()
        for index, row in enumerate(plan):
            with self.group.doing(f"training micro-batch {index + 1} of {len(plan)} on version {version}"):
                num_positions = row_length(row, lengths, self.group.sequence_parallel)
                batch = collate(samples, row[self.group.data_index], num_positions)
                loss, logprobs = self._forward(batch, diagnostics, most_documents)
                learned.put(index, logprobs)
                if not torch.isfinite(loss):
                    raise LearnerError(f"the loss of version {version} is {float(loss)}", kind="not_finite")
                self.policy.backward(loss / divisor, is_last=index == len(plan) - 1)
        rate = learning_rate(version, self.settings.steps, self.settings.learner)
        with self.group.doing(f"updating the weights of version {version}"):
            norm = self.policy.update(rate)
            self.group.sum(diagnostics.sums)
            self.logprobs = learned.gather()
        if not norm < float("inf"):
            raise LearnerError(f"the gradient norm of version {version} is {norm}", kind="not_finite")
        figures = diagnostics.figures()
        if self.settings.phase == "rft":  # nothing but successes: the sign is no news
            figures.pop("positive_advantage_share", None)
        return figures | {
            "gradient_norm": norm,
            "learning_rate": rate,
            "tokens": float(sum(lengths)),
            "micro_batches": float(len(plan)),
            "packing_used_share": used_share(plan, lengths, self.group.sequence_parallel),
        }

    def _forward(self, batch: MicroBatch, diagnostics: Diagnostics, most_documents: int) -> tuple[Tensor, Tensor]:
        """Weighted loss summed over this rank's positions of a micro-batch, and their log-probs."""
        inputs = self._mine(batch.token_ids), self._mine(batch.positions), self._mine(batch.targets)
        experts = None if batch.experts is None else self._mine(batch.experts)
        balance = self.settings.learner.router_aux_coef
        if balance:
            self.policy.routing.watch()
        logprobs, entropy, values = self.policy.logprobs(*inputs, experts)
        tokens = TokenTensors(
            logprobs=logprobs,
            behaviour=self._mine(batch.behaviour),
            advantages=self._mine(batch.advantages),
            weights=self._mine(batch.weights),
            entropy=entropy,
            reference=self._reference(batch, inputs) if needs_reference(self.loss) else None,
        )
        if values is not None:
            tokens = self._with_returns(tokens, values, batch)
        if self.objective.sequence_ratio:
            tokens = self._with_sequence_ratio(tokens, batch, most_documents)
        losses = token_losses(tokens, self.loss)
        diagnostics.add(tokens, entropy, self._mine(batch.staleness), losses, self.loss, self._mine(batch.behind_older))
        loss = (tokens.weights * losses).sum()
        if balance:  # weighed as this rank's tokens are among the batch's
            loss = loss + balance * tokens.weights.sum() * self.policy.routing.balance_loss()
        return loss, logprobs

    def _reference(self, batch: MicroBatch, inputs: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Log-probs under the reference policy: an endpoint's, which the samples came with, or our own copy's."""
        if self.loss.reference_endpoint is None:
            return self.policy.reference_logprobs(*inputs)
        assert batch.reference is not None, "samples are graded before they are trained on"
        return self._mine(batch.reference)

    def _mine(self, array: np.ndarray) -> Tensor:
        """This rank's slice of an array over the micro-batch's positions."""
        share = len(array) // self.group.sequence_parallel
        start = self.group.sequence_index * share
        return torch.from_numpy(array[start : start + share]).to(self.group.device)

    def _with_returns(self, tokens: TokenTensors, values: Tensor, batch: MicroBatch) -> TokenTensors:
        """`tokens` with values, and with advantages and returns of whole documents, which may lie on several ranks."""
        assert self.objective.targets is not None
        table = torch.zeros(self.group.data_parallel, self.group.sequence_parallel, len(values), device=values.device)
        table[self.group.data_index, self.group.sequence_index] = values.detach()
        whole = self.group.sum(table)[self.group.data_index].flatten().cpu().numpy()
        advantages, returns = self.objective.targets(
            whole, batch.advantages, batch.documents, batch.weights > 0, self.loss
        )
        return replace(tokens, values=values, advantages=self._mine(advantages), returns=self._mine(returns))

    def _with_sequence_ratio(self, tokens: TokenTensors, batch: MicroBatch, most_documents: int) -> TokenTensors:
        """`tokens` with the mean log-ratio of every token's document, which may lie on several ranks."""
        documents = self._mine(batch.documents)
        trained = (tokens.weights > 0).float()
        table = torch.zeros(self.group.data_parallel, most_documents + 1, 2, device=self.group.device)
        log_ratio = (tokens.logprobs.detach() - old_policy(tokens, self.loss)) * trained
        table[self.group.data_index].index_add_(0, documents, torch.stack([log_ratio, trained], 1))
        sums, counts = self.group.sum(table)[self.group.data_index].unbind(1)
        return replace(tokens, sequence_log_ratio=(sums / counts.clamp(min=1))[documents])
