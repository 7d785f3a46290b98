"""Plans against every way there is, on clusters small enough to try them all."""

import itertools

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cluster.hosts.plan import Demand, Host, Size, in_proportion, joined, moved, plan
from protocol.errors import ConfigError

sizes = st.builds(
    Size,
    cpus=st.sampled_from([0.5, 1, 2, 4, 16]),
    gpus=st.integers(0, 6),
    memory_gib=st.integers(1, 12).map(float),
)


@st.composite
def clusters(draw):
    count = draw(st.integers(1, 3))
    launcher = draw(st.integers(0, count - 1))
    return [Host(name=f"h{i}", size=draw(sizes), is_launcher=i == launcher) for i in range(count)]


@st.composite
def demands(draw):
    group = draw(st.integers(1, 3))
    on_gpu = draw(st.booleans())
    return Demand(
        replay=Size(1, 0, 1.0),
        ranks=group * draw(st.integers(0, 3)),
        rank=Size(1, int(on_gpu), float(draw(st.integers(0, 2)))),
        sequence_parallel=group,
        generators=draw(st.integers(0, 3)),
        generator=Size(1, draw(st.integers(1, 3)) if on_gpu else 0, float(draw(st.integers(0, 4)))),
        actor=Size(1, 0, 0.0),
        processes=draw(st.integers(0, 4)),
        episodes=draw(st.integers(1, 20)),
    )


def every_way(hosts, demand, group):
    """Hosts of ranks of each way to place groups of ranks and generators within GPUs and memory."""
    free = [(h.size.gpus, h.size.memory_gib - h.is_launcher * demand.replay.memory_gib) for h in hosts]
    if min(memory for _, memory in free) < 0:
        return
    groups = demand.ranks // group
    for ranks in itertools.product(range(groups + 1), repeat=len(hosts)):
        if sum(ranks) != groups:
            continue
        for engines in itertools.product(range(demand.generators + 1), repeat=len(hosts)):
            if sum(engines) != demand.generators:
                continue
            if all(
                n * group * demand.rank.gpus + e * demand.generator.gpus <= gpus
                and n * group * demand.rank.memory_gib + e * demand.generator.memory_gib <= memory
                for n, e, (gpus, memory) in zip(ranks, engines, free, strict=True)
            ):
                yield sum(n > 0 for n in ranks)


@given(clusters(), demands())
def test_what_can_be_placed_is_placed_and_nothing_is_promised_twice(hosts, demand):
    whole = list(every_way(hosts, demand, demand.sequence_parallel))
    some = whole or list(every_way(hosts, demand, 1))
    try:
        found = plan(hosts, demand)
    except ConfigError as error:
        assert "the cluster cannot hold this run" in str(error)
        assert not some
        return
    assert some
    names = [part.name for part in found.parts]
    assert len(names) == len(set(names))
    for host in hosts:
        mine = found.on(host.name)
        assert sum(part.size.gpus for part in mine) <= host.size.gpus
        assert sum(part.size.memory_gib for part in mine) <= host.size.memory_gib + 1e-6
        assert sum(part.size.cpus for part in mine) <= host.size.cpus + 1e-6
        assert all(part.size.cpus > 0 for part in mine)
    ranks = found.of("learner")
    assert [part.name for part in ranks] == [f"learner-{i}" for i in range(demand.ranks)]
    assert [part.name for part in found.of("generator")] == [f"generator-{i}" for i in range(demand.generators)]
    assert sum(part.episodes for part in found.of("actors")) == demand.episodes
    assert all(part.episodes > 0 for part in found.of("actors"))
    by_group = _batched(demand, ranks)
    if whole:
        assert all(len({part.host for part in group}) == 1 for group in by_group)
    if demand.rank.gpus and demand.ranks:
        assert len({part.host for part in ranks}) == min(whole or some)


def _batched(demand, ranks):
    return [ranks[i : i + demand.sequence_parallel] for i in range(0, len(ranks), demand.sequence_parallel)]


@given(clusters(), demands())
def test_the_replay_buffer_is_where_the_run_directory_is(hosts, demand):
    try:
        found = plan(hosts, demand)
    except ConfigError:
        assume(False)
    (replay,) = found.of("replay")
    assert replay.host == next(host.name for host in hosts if host.is_launcher)


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(0, 50)), min_size=1, max_size=8), st.floats(0, 1))
def test_shares_add_up_and_stay_below_their_bounds(shares, part):
    weights, most = [w for w, _ in shares], [m for _, m in shares]
    total = int(part * sum(most))
    given_ = in_proportion(total, weights, most)
    assert sum(given_) == total
    assert all(0 <= g <= m for g, m in zip(given_, most, strict=True))
    if all(total * w / sum(weights) <= m - 1 for w, m in shares if sum(weights)) and sum(weights):
        assert all(abs(g - total * w / sum(weights)) <= 1 for g, w in zip(given_, weights, strict=True))


def big(count, gpus=8, first=0):
    return [Host(name=f"n{i}", size=Size(192, gpus, 2000.0), is_launcher=i == 0) for i in range(first, first + count)]


RUN = Demand(
    replay=Size(1, 0, 1.0),
    ranks=32,
    rank=Size(1, 1, 8.0),
    sequence_parallel=8,
    generators=8,
    generator=Size(1, 4, 150.0),
    actor=Size(1, 0, 0.4),
    episodes=640,
    episode_gib=0.01,
)


def test_on_even_hosts_ranks_are_packed_and_generators_spread():
    found = plan(big(8), RUN)
    assert len({part.host for part in found.of("learner")}) == 4
    assert found.of("learner")[0].host == "n0"
    assert sorted(part.host for part in found.of("generator")) == sorted(["n1", "n2", "n3", "n4"] * 2)
    shares = [sum(part.episodes for part in found.on(host.name)) for host in found.hosts]
    assert max(shares) - min(shares) <= 8


def test_sandboxes_go_to_labelled_hosts_without_gpus():
    hosts = [*big(8), *(Host(name=f"s{i}", size=Size(64, 0, 256.0), labels={"pool": "sandbox"}) for i in range(2))]
    found = plan(hosts, Demand(**{f: getattr(RUN, f) for f in RUN.__struct_fields__} | {"label": "pool=sandbox"}))
    assert {part.host for part in found.of("actors")} == {"s0", "s1"}
    assert "640 episodes" not in "\n".join(found.lines())
    assert "320 episodes" in "\n".join(found.lines())


def test_one_small_host_holds_a_run_as_it_always_did():
    demand = Demand(ranks=2, generators=1, sequence_parallel=2, actor=Size(1, 0, 0.4), episodes=32)
    found = plan([Host(name="here", size=Size(2, 0, 20.0), is_launcher=True)], demand)
    assert [part.name for part in found.parts] == [
        "replay-buffer", "learner-0", "learner-1", "generator-0", "sandbox-actor-0",
    ]  # fmt: skip
    assert {part.size.cpus for part in found.parts} == {0.4}
    assert "cores shared" in found.lines()[0]


@pytest.mark.parametrize(
    ("hosts", "demand", "words"),
    [
        (big(7), RUN, "64 free GPUs needed, 56 there"),
        (
            big(8, gpus=3),
            Demand(ranks=2, rank=Size(1, 1, 1.0), generators=1, generator=Size(1, 4, 1.0)),
            "no way to place",
        ),
        (big(8), Demand(episodes=10, label="pool=sandbox"), "no host has the label pool=sandbox"),
        (big(1), Demand(actor=Size(1, 0, 1.0), episodes=4000, episode_gib=1.0), "GiB of memory needed"),
        (big(2), Demand(actor=Size(1, 0, 1.0), episodes=3999, episode_gib=1.0), "memory for 3998 of 3999 episodes"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_sentence(hosts, demand, words):
    with pytest.raises(ConfigError, match=words) as caught:
        plan(hosts, demand)
    assert len(str(caught.value).splitlines()) == 1


def test_what_was_on_a_host_that_is_gone_moves_to_where_there_is_room():
    demand = Demand(generators=3, generator=Size(1, 0, 2.0), actor=Size(1, 0, 0.4), episodes=30)
    hosts = [Host(name=f"n{i}", size=Size(8, 0, 16.0), is_launcher=i == 0) for i in range(3)]
    before = plan(hosts, demand)
    lost = [part.name for part in before.on("n2")]
    assert lost
    left = [
        Host(name="n0", size=Size(0, 0, 8.0), is_launcher=True),
        Host(name="n1", size=Size(2, 0, 8.0)),
        Host(name="n3", size=Size(4, 0, 1.0)),
    ]
    after = before
    for name in lost:
        after = moved(after, name, left)
    assert not after.on("n2")
    for old, new in zip(before.parts, after.parts, strict=True):
        assert (old.name, old.role, old.episodes) == (new.name, new.role, new.episodes)
        if old.name not in lost:
            assert old == new
        elif old.role == "generator":
            assert new.host in ("n0", "n1")  # the third has too little memory
        else:
            assert new.host == "n3"
    with pytest.raises(ConfigError, match="no host that is left has room for generator-"):
        moved(before, next(part.name for part in before.of("generator")), [left[2]])


@given(clusters(), demands(), sizes)
def test_a_host_that_joins_gets_its_share_and_nothing_else_moves(hosts, demand, size):
    try:
        before = plan(hosts, demand)
    except ConfigError:
        assume(False)
    late = Host(name="late", size=size)
    after = joined(before, late, demand)
    assert after.parts[: len(before.parts)] == before.parts
    new = after.parts[len(before.parts) :]
    assert {part.host for part in new} <= {"late"}
    assert len({part.name for part in after.parts}) == len(after.parts)
    assert {part.role for part in new} <= {"generator", "actors"}
    assert sum(part.size.gpus for part in new) <= size.gpus
    assert sum(part.size.memory_gib for part in new) <= size.memory_gib + 1e-6
    assert sum(part.size.cpus for part in new) <= size.cpus + 1e-6


def test_a_host_that_joins_hosts_as_many_episodes_for_its_cores_as_the_others():
    before = plan(big(8), RUN)
    late = Host(name="late", size=Size(96, 8, 2000.0))
    after = joined(before, late, RUN)
    assert sum(part.episodes for part in after.on("late")) == 40  # 640 over eight hosts of 192
    assert [part.name for part in after.of("generator")][8:] == ["generator-8", "generator-9"]
    labelled = Demand(**{f: getattr(RUN, f) for f in RUN.__struct_fields__} | {"label": "pool=sandbox"})
    assert not [part for part in joined(before, late, labelled).on("late") if part.role == "actors"]
