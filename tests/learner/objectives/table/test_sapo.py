"""SAPO's slow reference."""

import math

from tests.learner.objectives import slow

advantages = slow.group_normalised


def reference(x, t, s):
    ratio = slow.ratio(x.logp[t], x.behaviour[t])
    tau = s.tau_positive if x.advantage[t] > 0 else s.tau_negative
    gate = 1 / (1 + math.exp(-tau * (ratio - 1)))
    return -4 / tau * gate * x.advantage[t], -4 * gate * (1 - gate) * ratio * x.advantage[t]
