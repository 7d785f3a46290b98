"""The slow reference of decoupled PPO."""

from tests.learner.objectives import slow

advantages = slow.group_normalised


def reference(x, t, s):
    weight = min(slow.ratio(x.proximal[t], x.behaviour[t]), s.truncate_weight)
    loss, slope = slow.clipped(slow.ratio(x.logp[t], x.proximal[t]), x.advantage[t], s)
    return weight * loss, weight * slope
