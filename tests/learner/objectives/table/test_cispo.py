"""CISPO's slow reference."""

from tests.learner.objectives import slow

advantages = slow.group_normalised


def reference(x, t, s):
    weight = min(max(slow.ratio(x.logp[t], x.behaviour[t]), 1 - s.eps_low), 1 + s.eps_high)
    return -weight * x.advantage[t] * x.logp[t], -weight * x.advantage[t]
