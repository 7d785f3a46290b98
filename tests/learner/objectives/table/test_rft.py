"""The slow reference of rejection-sampling fine-tuning."""

from tests.learner.objectives import slow

advantages = slow.group_normalised


def reference(x, t, s):
    return -x.advantage[t] * x.logp[t], -x.advantage[t]
