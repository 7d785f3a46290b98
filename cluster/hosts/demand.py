"""What a run has to place, from its settings: arithmetic, before anything is started."""

from __future__ import annotations

from cluster.hosts.plan import Demand, Host, Size
from cluster.memory import ACTOR_GIB, SANDBOX_GIB, needed_gib
from learner.ranks import layout
from protocol.config import Settings
from protocol.errors import ConfigError

_REPLAY_GIB = 0.3


def demand_of(settings: Settings, hosts: list[Host]) -> Demand:
    """Ranks that are left to the hosts to decide are one for every GPU that no generator takes.

    Raises:
        ConfigError: ranks and heads do not go together, or generators and learner together need more GPUs.
    """
    num_gpus = sum(host.size.gpus for host in hosts)
    on_gpu = num_gpus > 0
    foreign = settings.phase == "eval" and bool(settings.eval.endpoint)
    generators = 0 if foreign else settings.generator.count
    ranks = 0
    if settings.phase != "eval":
        left = num_gpus - generators * settings.generator.tensor_parallel
        if on_gpu and left < 1:
            raise ConfigError(
                f"the cluster cannot hold this run: {generators} generators of "
                f"{settings.generator.tensor_parallel} GPUs leave none of {num_gpus} free GPUs to the learner; "
                f"lower --generator.count or "
                "--generator.tensor-parallel, or add hosts",
                kind="hosts",
            )
        ranks = layout.num_ranks(settings, max(left, 0))
    memory = needed_gib(settings, on_gpu=on_gpu)
    share = memory.get("learner", 0.0) / max(1, layout.num_ranks(settings, num_gpus=0))
    return Demand(
        replay=Size(1, 0, _REPLAY_GIB),
        ranks=ranks,
        rank=Size(settings.learner.threads, int(on_gpu), share),
        published_gib=memory.get("published weights", 0.0) if ranks else 0.0,
        sequence_parallel=layout.sequence_parallel(settings, ranks) if ranks else 1,
        generators=generators,
        generator=Size(
            settings.generator.threads,
            settings.generator.tensor_parallel if on_gpu else 0,
            memory.get("generators", 0.0) / settings.generator.count,
        ),
        actor=Size(1, 0, ACTOR_GIB),
        processes=settings.actors.processes,
        episodes=settings.num_actors,
        episode_gib=SANDBOX_GIB,
        label=settings.hosts.sandbox_label,
    )
