"""Which process of a run goes to which host: hosts and a demand in, a plan out. Pure.

    replay buffer   the launcher's host, where the run directory is
    learner ranks   on as few hosts as hold them, a Ulysses group on one where that can be; the launcher's if it will do
    generators      spread; all GPUs of one engine on one host
    sandbox actors  on every host that may hold them, in proportion to the cores and memory that are left

GPUs and memory are never promised twice. Cores may be: a host that is short of them shares them out, and the plan says
so. Without GPUs, ranks rather share cores on the launcher's host than be elsewhere: checkpoints are written there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from msgspec import Struct

from protocol.errors import ConfigError

Role = Literal["replay", "learner", "generator", "actors"]
_CROWDING = (1, 2, 4, 8, 16, 64)
"""How many processes may share a core, tried in turn."""
_LEAST_EPISODES = 4
"""Of one process, where their number is not set: each costs as much memory as two hundred sandboxes."""
_LEAST_SHARE = 1 / 8
"""Of its cores, what a host counts with for sandboxes however busy its other processes are."""


class Size(Struct, frozen=True):
    """What one process needs of its host, or what a host has."""

    cpus: float = 1
    gpus: int = 0
    memory_gib: float = 0.0


_NOTHING = Size(0, 0, 0.0)


class Host(Struct, frozen=True, kw_only=True):
    """One host with what is free on it."""

    name: str
    size: Size
    is_launcher: bool = False
    labels: dict[str, str] = {}
    address: str = ""  # under which the others reach it


class Demand(Struct, frozen=True, kw_only=True):
    """What is to be placed.

    Args:
        published_gib: memory of the weights that rank 0 publishes, beside its own.
        processes: of sandbox actors, over all hosts; 0: one for every two cores, of four episodes or more.
        label: `key=value` that a host must have for sandboxes; empty: any host will do.
    """

    replay: Size = Size()
    ranks: int = 0
    rank: Size = Size()
    published_gib: float = 0.0
    sequence_parallel: int = 1
    generators: int = 0
    generator: Size = Size()
    actor: Size = Size()
    processes: int = 0
    episodes: int = 0
    episode_gib: float = 0.0
    label: str = ""


class Placed(Struct, frozen=True, kw_only=True):
    """A process with its host. `size` is what Ray is told: shares of a core where a host has too few."""

    name: str
    role: Role
    host: str
    size: Size
    episodes: int = 0  # at once, of a sandbox actor


class Plan(Struct, frozen=True):
    """Every process of a run with its host."""

    hosts: list[Host]
    parts: list[Placed]

    def on(self, host: str) -> list[Placed]:
        """What a host gets."""
        return [part for part in self.parts if part.host == host]

    def host_of(self, name: str) -> str:
        """Where a process goes."""
        return next(part.host for part in self.parts if part.name == name)

    def of(self, role: Role) -> list[Placed]:
        """The processes of a kind, in the order of their numbers."""
        return [part for part in self.parts if part.role == role]

    def lines(self) -> list[str]:
        """For people: one line for every host, equal ones told once."""
        rows = [(host.name, _row(host, self.on(host.name))) for host in self.hosts]
        width = max((len(name) for name, _ in rows), default=0)
        return [f"  {name:<{width}}  {row}" for name, row in rows]


def plan(hosts: Sequence[Host], demand: Demand) -> Plan:
    """Raises `ConfigError` with one sentence where the hosts cannot hold the demand."""
    if sum(host.is_launcher for host in hosts) != 1:
        raise ConfigError("expected exactly one host that the run is launched from", kind="hosts")
    _check_sums(hosts, demand)
    free = {host.name: _Free(host, demand) for host in hosts}
    for group in dict.fromkeys((demand.sequence_parallel, 1)):
        for at_launcher in (False,) if demand.rank.gpus or not demand.ranks else (True, False):
            for crowding in _CROWDING:
                if found := _share_out(list(free.values()), demand, _How(group, crowding, at_launcher)):
                    return _written_down(hosts, demand, free, group, *found)
    raise ConfigError(_why_not(hosts, demand), kind="hosts")


def moved(before: Plan, name: str, hosts: Sequence[Host]) -> Plan:
    """`before` with one part, whose host is gone, on one of the hosts that are left, with what is free on each now.

    Generators go where fewest are, sandbox actors where most cores are free. Raises `ConfigError` where no room is.
    """
    part = next(part for part in before.parts if part.name == name)
    able = [
        host
        for host in hosts
        if host.size.gpus >= part.size.gpus and host.size.memory_gib >= part.size.memory_gib and host.name != part.host
    ]
    if not able:
        raise ConfigError(f"no host that is left has room for {name}, whose host {part.host} is gone", kind="hosts")

    def fitness(host: Host) -> tuple[float, float]:
        alike = sum(other.role == part.role for other in before.on(host.name))
        return (-alike if part.role == "generator" else 0.0, host.size.cpus)

    best = max(able, key=fitness)
    size = Size(_as_ray_counts(min(part.size.cpus, best.size.cpus)), part.size.gpus, part.size.memory_gib)
    there = Placed(name=name, role=part.role, host=best.name, size=size, episodes=part.episodes)
    known = {host.name for host in hosts}
    return Plan(
        [*(host for host in before.hosts if host.name not in known), *hosts],
        [there if other.name == name else other for other in before.parts],
    )


def joined(before: Plan, host: Host, demand: Demand) -> Plan:
    """`before` with a host that joined later, and its share: generators (as many as its GPUs drive; without GPUs one,
    where it has cores for more than that), and episodes for its cores as the other hosts have for theirs.
    """
    free = _Free(host, demand)
    most = free.most(demand.generator, 1, Size(1, 0, demand.actor.memory_gib)) if demand.generators else 0
    parts = []
    for index in range(most if demand.generator.gpus else min(most, 1)):
        free.take(demand.generator)
        name = f"generator-{_next_number(before, 'generator') + index}"
        parts.append(Placed(name=name, role="generator", host=host.name, size=demand.generator))
    actors = before.of("actors")
    cores = sum(other.size.cpus for other in before.hosts if other.name in {part.host for part in actors})
    episodes = round(sum(part.episodes for part in actors) * host.size.cpus / cores) if cores else 0
    share = Demand(
        actor=demand.actor,
        processes=-(-len(actors) * episodes // sum(part.episodes for part in actors)) if demand.processes else 0,
        episodes=min(max(episodes, 1), _most_episodes(free, demand)) if free.is_for_sandboxes else 0,
        episode_gib=demand.episode_gib,
    )
    for index, part in enumerate(_sandbox_actors([host], share, {host.name: free}) if share.episodes else ()):
        name = f"sandbox-actor-{_next_number(before, 'actors') + index}"
        parts.append(Placed(name=name, role="actors", host=host.name, size=part.size, episodes=part.episodes))
    return Plan([*before.hosts, host], [*before.parts, *_within_cores(host, parts)])


def _next_number(plan: Plan, role: Role) -> int:
    return 1 + max((int(part.name.rpartition("-")[2]) for part in plan.of(role)), default=-1)


class _How(NamedTuple):
    """A way to try: how many ranks stay together and processes share a core; must the launcher's host have ranks?"""

    group: int
    crowding: int
    at_launcher: bool


class _Free:
    """What a host can still hold."""

    def __init__(self, host: Host, demand: Demand) -> None:
        self.host = host
        self.gpus = host.size.gpus
        self.memory = host.size.memory_gib
        self.cpus = host.size.cpus
        self.is_for_sandboxes = not demand.label or demand.label in (f"{k}={v}" for k, v in host.labels.items())
        if host.is_launcher:
            self.take(demand.replay)

    def take(self, size: Size, count: int = 1) -> None:
        self.gpus -= count * size.gpus
        self.memory -= count * size.memory_gib
        self.cpus -= count * size.cpus

    def most(self, size: Size, crowding: int, taken: Size) -> int:
        """How many processes of `size` fit beside what is `taken`."""
        room = [
            (self.gpus - taken.gpus, size.gpus),
            (self.memory - taken.memory_gib, size.memory_gib),
            # what has GPUs is bounded by them: its threads wait for a device
            ((crowding - 1) * self.host.size.cpus + self.cpus - taken.cpus, 0 if size.gpus else size.cpus),
        ]
        return max(0, min((int(have / one + 1e-9) for have, one in room if one), default=1 << 20))


def _share_out(free: list[_Free], demand: Demand, how: _How) -> tuple[list[int], list[int]] | None:
    """Groups of ranks and generators of each host, on the fewest hosts that hold the ranks; None: they do not fit."""
    groups = demand.ranks // how.group
    rooms = sorted((one.most(demand.rank, how.crowding, _NOTHING) // how.group for one in free), reverse=True)
    if sum(rooms) < groups:
        return None
    fewest = next(count for count in range(len(rooms) + 1) if sum(rooms[:count]) >= groups)
    for most_hosts in range(fewest, len(free) + 1):
        taken = _beside_generators(free, demand, how, most_hosts)
        if taken is not None:
            return taken, _spread(free, demand, how, taken)
    return None


def _beside_generators(free: list[_Free], demand: Demand, how: _How, most_hosts: int) -> list[int] | None:
    """Groups of ranks of each host, such that the generators fit beside them: dynamic programming over the hosts.

    A state is (groups placed, hosts used for them, whether the launcher's is among them), its worth the generators that
    still fit.
    """
    groups = demand.ranks // how.group
    worth: dict[tuple[int, int, bool], int] = {(0, 0, False): 0}
    ways: list[dict[tuple[int, int, bool], tuple[int, tuple[int, int, bool]]]] = []
    for one in free:
        most = min(one.most(demand.rank, how.crowding, _NOTHING) // how.group, groups)
        beside = [one.most(demand.generator, how.crowding, _times(demand.rank, n * how.group)) for n in range(most + 1)]
        before, worth = worth, {}
        ways.append({})
        for old, generators in before.items():
            for n in range(min(most, groups - old[0]) + 1):
                new = (old[0] + n, old[1] + (n > 0), old[2] or (n > 0 and one.host.is_launcher))
                fitting = min(generators + beside[n], demand.generators)
                if new[1] <= most_hosts and fitting > worth.get(new, -1):
                    worth[new] = fitting
                    ways[-1][new] = n, old
    ends = [
        (used, not at_launcher, (placed, used, at_launcher))
        for (placed, used, at_launcher), generators in worth.items()
        if placed == groups and generators == demand.generators and (at_launcher or not how.at_launcher)
    ]
    if not ends:
        return None
    state = min(ends)[2]
    taken = []
    for way in reversed(ways):
        n, state = way[state]
        taken.append(n)
    return taken[::-1]


def _spread(free: list[_Free], demand: Demand, how: _How, taken: list[int]) -> list[int]:
    """Generators of each host: one more to the host that has fewest, and then the most room, until all have a place."""
    beside = [_times(demand.rank, n * how.group) for n in taken]
    most = [one.most(demand.generator, how.crowding, ranks) for one, ranks in zip(free, beside, strict=True)]
    given = [0] * len(free)
    for _ in range(demand.generators):
        best = min(
            (i for i in range(len(free)) if given[i] < most[i]),
            key=lambda i: (given[i], taken[i] > 0, given[i] - most[i], free[i].host.is_launcher, i),
        )
        given[best] += 1
    return given


def _written_down(
    hosts: Sequence[Host],
    demand: Demand,
    free: dict[str, _Free],
    group: int,
    groups: list[int],
    generators: list[int],
) -> Plan:
    launcher = next(host for host in hosts if host.is_launcher)
    parts = [Placed(name="replay-buffer", role="replay", host=launcher.name, size=demand.replay)]
    rank_hosts = [host for host, n in zip(hosts, groups, strict=True) for _ in range(n * group)]
    rank_hosts.sort(key=lambda host: (not host.is_launcher, hosts.index(host)))  # rank 0 at the launcher's if it can be
    for rank, host in enumerate(rank_hosts):
        published = 0.0 if rank else demand.published_gib
        size = Size(demand.rank.cpus, demand.rank.gpus, demand.rank.memory_gib + published)
        parts.append(Placed(name=f"learner-{rank}", role="learner", host=host.name, size=size))
    turns = [hosts[i] for n in range(max(generators, default=0)) for i in range(len(hosts)) if generators[i] > n]
    for index, host in enumerate(turns):
        parts.append(Placed(name=f"generator-{index}", role="generator", host=host.name, size=demand.generator))
    for part in parts[1:]:
        free[part.host].take(part.size)
    if short := [name for name, one in free.items() if one.memory < -1e-9]:
        raise ConfigError(f"{_why_not(hosts, demand)}: {short[0]} lacks memory for the published weights", kind="hosts")
    parts += _sandbox_actors(hosts, demand, free)
    told = {part.name: part for host in hosts for part in _within_cores(host, parts)}
    return Plan(list(hosts), [told[part.name] for part in parts])


def _within_cores(host: Host, parts: list[Placed]) -> Iterator[Placed]:
    mine = [part for part in parts if part.host == host.name]
    wanted = sum(part.size.cpus for part in mine)
    share = min(1.0, host.size.cpus / wanted) if wanted else 1.0
    for part in mine:
        size = Size(_as_ray_counts(part.size.cpus * share), part.size.gpus, part.size.memory_gib)
        yield Placed(name=part.name, role=part.role, host=part.host, size=size, episodes=part.episodes)


def _sandbox_actors(hosts: Sequence[Host], demand: Demand, free: dict[str, _Free]) -> Iterator[Placed]:
    """In proportion to the cores and memory that are left, whichever a host has less of; no more than memory holds."""
    able = [host for host in hosts if free[host.name].is_for_sandboxes]
    most = [_most_episodes(free[host.name], demand) for host in able]
    if sum(most) < demand.episodes:
        raise ConfigError(
            f"the cluster cannot hold this run: beside everything else its hosts have memory for {sum(most)} of "
            f"{demand.episodes} episodes at once; {_WHAT_TO_LOWER}",
            kind="hosts",
        )
    cores = [max(free[host.name].cpus, host.size.cpus * _LEAST_SHARE) for host in able]
    memory = [free[host.name].memory for host in able]
    weights = [
        min(c / sum(cores), (m / sum(memory)) if demand.episode_gib else 1.0) if n else 0.0
        for c, m, n in zip(cores, memory, most, strict=True)
    ]
    episodes = in_proportion(demand.episodes, weights, most)
    if demand.processes:
        wanted = min(demand.processes, demand.episodes)
        processes = in_proportion(wanted, [float(n) for n in episodes], episodes)
    else:
        processes = [
            min(max(1, int(host.size.cpus) // 2), -(-n // _LEAST_EPISODES))
            for host, n in zip(able, episodes, strict=True)
        ]
    number = 0
    for host, some, wished in zip(able, episodes, processes, strict=True):
        for index in range(count := _processes_within(free[host.name].memory, demand, some, wished)):
            share = some // count + (index < some % count)
            size = Size(demand.actor.cpus, 0, demand.actor.memory_gib + share * demand.episode_gib)
            name = f"sandbox-actor-{number}"
            yield Placed(name=name, role="actors", host=host.name, size=size, episodes=share)
            number += 1


def _most_episodes(free: _Free, demand: Demand) -> int:
    """In one process."""
    room = free.memory - demand.actor.memory_gib + 1e-9
    if room < 0:
        return 0
    return min(demand.episodes, int(room / demand.episode_gib) if demand.episode_gib else demand.episodes)


def _processes_within(memory_gib: float, demand: Demand, episodes: int, wished: int) -> int:
    """At least one where there are episodes, at most what the memory beside them holds."""
    if not episodes:
        return 0
    room = memory_gib - episodes * demand.episode_gib + 1e-9
    most = int(room / demand.actor.memory_gib) if demand.actor.memory_gib else episodes
    return max(1, min(wished, most, episodes))


def in_proportion(total: int, weights: Sequence[float], most: Sequence[int]) -> list[int]:
    """Whole numbers that add up to `total`, as near to `weights` as they and `most` (which hold it) allow."""
    given = [0] * len(weights)
    while left := total - sum(given):
        open_ = [i for i in range(len(weights)) if given[i] < most[i] and weights[i] > 0]
        if not open_:
            open_ = [i for i in range(len(weights)) if given[i] < most[i]]
            weights = most
        whole = sum(weights[i] for i in open_)
        shares = {i: left * weights[i] / whole for i in open_}
        steps = {i: min(int(shares[i] + 1e-9), most[i] - given[i]) for i in open_}
        rest = left - sum(steps.values())
        if rest < len(open_):  # the largest remainders first; where a host is full, another round shares out again
            for i in sorted(open_, key=lambda i: (steps[i] - shares[i], i))[:rest]:
                steps[i] += steps[i] < most[i] - given[i]
        for i, step in steps.items():
            given[i] += step
    return given


def _as_ray_counts(cpus: float) -> float:
    """Whole cores, or ten-thousandths of one."""
    return float(int(cpus)) if cpus >= 1 else int(cpus * 10_000) / 10_000


class _Sum(NamedTuple):
    needed: float
    there: float
    unit: str


def _check_sums(hosts: Sequence[Host], demand: Demand) -> None:
    """What is short over all hosts together."""
    gpus = demand.ranks * demand.rank.gpus + demand.generators * demand.generator.gpus
    memory = (
        demand.replay.memory_gib
        + demand.ranks * demand.rank.memory_gib
        + demand.published_gib
        + demand.generators * demand.generator.memory_gib
        + demand.actor.memory_gib
        + demand.episodes * demand.episode_gib
    )
    for needed, there, unit in (
        _Sum(gpus, sum(host.size.gpus for host in hosts), "free GPUs"),
        _Sum(memory, sum(host.size.memory_gib for host in hosts), "GiB of memory"),
    ):
        if needed > there + 1e-9:
            raise ConfigError(
                f"the cluster cannot hold this run: {needed:,.4g} {unit} needed, {there:,.4g} there "
                f"({_hosts_in_words(hosts)}); {_WHAT_TO_LOWER}",
                kind="hosts",
            )
    if demand.label and not any(demand.label in (f"{k}={v}" for k, v in host.labels.items()) for host in hosts):
        raise ConfigError(
            f"no host has the label {demand.label} for sandboxes ({_hosts_in_words(hosts)})", kind="hosts"
        )


_WHAT_TO_LOWER = "lower --learner.ranks, --generator.count, --generator.tensor-parallel or --num-actors, or add hosts"


def _why_not(hosts: Sequence[Host], demand: Demand) -> str:
    def words(size: Size) -> str:
        return f"{size.gpus} GPUs and {size.memory_gib:.1f} GiB" if size.gpus else f"{size.memory_gib:.1f} GiB"

    return (
        f"the cluster cannot hold this run: no way to place {demand.ranks} learner ranks ({words(demand.rank)} each) "
        f"and {demand.generators} generators ({words(demand.generator)} each, on one host) was found on "
        f"{_hosts_in_words(hosts)}; {_WHAT_TO_LOWER}"
    )


def _hosts_in_words(hosts: Sequence[Host]) -> str:
    sizes = [f"{h.size.cpus:g} cores, {h.size.gpus} GPUs, {h.size.memory_gib:.0f} GiB" for h in hosts]
    return "; ".join(f"{sizes.count(size)} of {size}" for size in dict.fromkeys(sizes))


def _times(size: Size, count: int) -> Size:
    return Size(count * size.cpus, count * size.gpus, count * size.memory_gib)


def _row(host: Host, parts: list[Placed]) -> str:
    ranks = [int(part.name.rpartition("-")[2]) for part in parts if part.role == "learner"]
    engines = [part for part in parts if part.role == "generator"]
    actors = [part for part in parts if part.role == "actors"]
    words = ["replay buffer"] if any(part.role == "replay" for part in parts) else []
    if ranks:
        words.append(f"learner rank{'s' * (len(ranks) > 1)} {_span(ranks)}")
    if engines:
        gpus = f" of {engines[0].size.gpus} GPU{'s' * (engines[0].size.gpus > 1)}" if engines[0].size.gpus else ""
        words.append(f"{len(engines)} generator{'s' * (len(engines) > 1)}{gpus}")
    if actors:
        words.append(
            f"{sum(part.episodes for part in actors)} episodes in {len(actors)} actor process{'es' * (len(actors) > 1)}"
        )
    used = _sum_of(parts)
    shared = "" if all(part.size.cpus >= 1 for part in parts) else ", cores shared"
    return (
        f"{', '.join(words) or 'nothing'}  ({used.cpus:.4g} of {host.size.cpus:g} cores{shared}, {used.gpus} of "
        f"{host.size.gpus} GPUs, {used.memory_gib:.1f} of {host.size.memory_gib:.0f} GiB)"
    )


def _sum_of(parts: list[Placed]) -> Size:
    return Size(
        sum(part.size.cpus for part in parts),
        sum(part.size.gpus for part in parts),
        sum(part.size.memory_gib for part in parts),
    )


def _span(numbers: list[int]) -> str:
    if len(numbers) > 1 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers))
