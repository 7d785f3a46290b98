"""The slow reference of Dr. GRPO."""

from tests.learner.objectives import slow

advantages = slow.group_centred


def reference(x, t, s):
    return slow.clipped(slow.ratio(x.logp[t], x.behaviour[t]), x.advantage[t], s)
