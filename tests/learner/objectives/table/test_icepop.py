"""IcePop's slow reference."""

from tests.learner.objectives import slow

advantages = slow.group_normalised


def reference(x, t, s):
    weight = slow.ratio(x.proximal[t], x.behaviour[t])
    if not s.band_low <= weight <= s.band_high:
        return 0.0, 0.0
    loss, slope = slow.clipped(slow.ratio(x.logp[t], x.proximal[t]), x.advantage[t], s)
    return weight * loss, weight * slope
