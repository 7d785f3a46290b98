"""The slow reference of DPPO by total variation."""

import math

from tests.learner.objectives import slow

advantages = slow.group_normalised


def reference(x, t, s):
    ratio = slow.ratio(x.logp[t], x.behaviour[t])
    divergence = abs(math.exp(x.logp[t]) - math.exp(x.behaviour[t]))
    if divergence > s.max_divergence and slow.leaves(ratio, x.advantage[t]):
        return 0.0, 0.0
    return -ratio * x.advantage[t], -ratio * x.advantage[t]
