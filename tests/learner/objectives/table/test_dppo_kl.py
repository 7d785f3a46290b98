"""The slow reference of DPPO by KL."""

import math

from tests.learner.objectives import slow

advantages = slow.group_normalised


def reference(x, t, s):
    ratio = slow.ratio(x.logp[t], x.behaviour[t])
    new, old = (min(math.exp(logp), 1 - 1e-6) for logp in (x.logp[t], x.behaviour[t]))
    divergence = old * (x.behaviour[t] - x.logp[t]) + (1 - old) * math.log((1 - old) / (1 - new))
    if divergence > s.max_divergence and slow.leaves(ratio, x.advantage[t]):
        return 0.0, 0.0
    return -ratio * x.advantage[t], -ratio * x.advantage[t]
