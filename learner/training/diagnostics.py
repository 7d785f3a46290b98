"""What a step says about itself: sums over tokens that add up over micro-batches and ranks, then become figures.

Quantiles come from histograms, because histograms add and quantiles do not: log-ratios fall into bins of 0.01 between
-2 and 2 (beyond that into the outermost), one histogram for tokens sampled by the current weights, one for tokens one
version old, and so on.
"""

from __future__ import annotations

import torch
from torch import Tensor

from learner.objectives.parts.kl import kl_k3
from learner.objectives.parts.objective import TokenTensors
from learner.objectives.parts.ratios import ratio_of
from protocol.config import LossSettings

_SUMS = (
    "tokens",
    "weight",
    "loss",
    "entropy",
    "mismatch_kl",
    "mismatch_abs",
    "fresh_tokens",
    "fresh_mismatch_abs",
    "fresh_behind_older_tokens",
    "fresh_behind_older_mismatch_abs",
    "clipped_low",
    "clipped_high",
    "outside_band",
    "ratio",
    "ratio_squared",
    "staleness",
    "positive_advantages",
    "negative_advantages",
    "valued_tokens",
    "value_error_squared",
)
NUM_AGES = 8
"""Histograms: tokens of `NUM_AGES - 1` or more versions of age share the last one."""
_NUM_BINS = 400
_BIN_WIDTH = 0.01
_CENTRES = (torch.arange(_NUM_BINS) + 0.5 - _NUM_BINS / 2) * _BIN_WIDTH


class Diagnostics:
    """Sums over the tokens that this rank has seen in a step."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(len(_SUMS) + NUM_AGES * _NUM_BINS, dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(
        self,
        tokens: TokenTensors,
        entropy: Tensor,
        staleness: Tensor,
        losses: Tensor,
        settings: LossSettings,
        behind_older: Tensor | None = None,
    ) -> None:
        """Count one micro-batch's tokens; tokens of weight 0 do not count. `behind_older` (bool): tokens whose episode
        has earlier ones of older versions, so that keys and values of those may have been used; None: no token.
        """
        trained = tokens.weights > 0
        logprobs, behaviour = tokens.logprobs[trained], tokens.behaviour[trained]
        advantages, age = tokens.advantages[trained], staleness[trained]
        older = torch.zeros_like(trained) if behind_older is None else behind_older
        ratio, fresh, mixed = ratio_of(logprobs, behaviour), (age == 0) & ~older[trained], (age == 0) & older[trained]
        distance = (logprobs - behaviour).abs()
        sums = (
            trained.sum(),
            tokens.weights.sum(),
            (tokens.weights * losses).sum(),
            entropy[trained].sum(),
            kl_k3(behaviour, logprobs).sum(),
            distance.sum(),
            fresh.sum(),
            distance[fresh].sum(),
            mixed.sum(),
            distance[mixed].sum(),
            ((ratio < 1 - settings.eps_low) & (advantages < 0)).sum(),
            ((ratio > 1 + settings.eps_high) & (advantages > 0)).sum(),
            ((ratio < settings.band_low) | (ratio > settings.band_high)).sum(),
            ratio.double().sum(),
            ratio.double().square().sum(),
            age.sum(),
            (advantages > 0).sum(),
            (advantages < 0).sum(),
            *_of_values(tokens, trained),
        )
        self._sums[: len(_SUMS)] += torch.stack([value.double() for value in sums])
        bins = ((logprobs - behaviour) / _BIN_WIDTH + _NUM_BINS / 2).long().clamp(0, _NUM_BINS - 1)
        bins += age.long().clamp(0, NUM_AGES - 1) * _NUM_BINS
        self._sums[len(_SUMS) :] += torch.bincount(bins, minlength=NUM_AGES * _NUM_BINS)

    @property
    def sums(self) -> Tensor:
        """The state: what two of these hold may be added up, in place."""
        return self._sums

    def figures(self) -> dict[str, float]:
        """Means over tokens, effective sample size, and by age of the tokens' version: quantiles of the ratio learner /
        behaviour, mean and largest distance of the log-probs (to half a bin's width)."""
        s = dict(zip(_SUMS, self._sums[: len(_SUMS)].tolist(), strict=True))
        count = max(s["tokens"], 1.0)
        figures = {
            "trained_tokens": s["tokens"],
            "loss_mean": s["loss"] / max(s["weight"], 1e-12),
            "entropy_mean": s["entropy"] / count,
            "mismatch_kl_mean": s["mismatch_kl"] / count,
            "mismatch_abs_mean": s["mismatch_abs"] / count,
            "clipped_low_share": s["clipped_low"] / count,
            "clipped_high_share": s["clipped_high"] / count,
            "outside_band_share": s["outside_band"] / count,
            "effective_sample_share": s["ratio"] ** 2 / max(s["ratio_squared"], 1e-12) / count,
            "token_staleness_mean": s["staleness"] / count,
        }
        for kind in ("fresh", "fresh_behind_older"):  # no such token, no figure
            if s[f"{kind}_tokens"]:
                figures[f"{kind}_mismatch_abs_mean"] = s[f"{kind}_mismatch_abs"] / s[f"{kind}_tokens"]
        if signed := s["positive_advantages"] + s["negative_advantages"]:
            figures["positive_advantage_share"] = s["positive_advantages"] / signed
        if s["valued_tokens"]:
            figures["value_error_rms"] = (s["value_error_squared"] / s["valued_tokens"]) ** 0.5
        histograms = self._sums[len(_SUMS) :].reshape(NUM_AGES, _NUM_BINS).cpu()
        for age, histogram in enumerate(histograms):
            if histogram.sum() > 0:
                for name, share in (("p01", 0.01), ("p50", 0.5), ("p99", 0.99)):
                    figures[f"ratio_age{age}_{name}"] = _quantile(histogram, share)
                distances = _CENTRES.abs()
                figures[f"mismatch_age{age}_abs_mean"] = float((distances * histogram).sum() / histogram.sum())
                figures[f"mismatch_age{age}_abs_max"] = float(distances[histogram > 0].max())
        return figures


def _of_values(tokens: TokenTensors, trained: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens whose value was estimated, and the sum of their squared distances to the returns."""
    if tokens.values is None or tokens.returns is None:
        none = torch.zeros((), device=trained.device)
        return none, none
    return trained.sum(), (tokens.values - tokens.returns)[trained].square().sum()


def _quantile(histogram: Tensor, share: float) -> float:
    """Ratio below which `share` of the tokens lie, to a bin's width."""
    index = int(torch.searchsorted(histogram.cumsum(0), share * histogram.sum()))
    return float(_CENTRES[min(index, _NUM_BINS - 1)].exp())
