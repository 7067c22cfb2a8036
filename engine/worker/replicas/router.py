"""Chooses the replica that takes a request: the one where it costs least.

    cost  =  weight · prompt tokens to compute there  +  work that is there already
             +  a share of what it was given lately, beyond the mean

So a request goes where most of its prompt is cached, unless that replica has much more to do than
another one. Work counts from the choice to the end of the request, not from the first answer, and
only replicas that are offered to `choose` count.

- While few replicas have anything to do, queues say nothing. What each was given lately keeps those
  that hold the beginnings of many texts from doing most of the work.

- No replica is chosen for its cache when it has more work than the least busy one, beyond what its
  cache is worth. So a prompt that everybody begins with makes no "hot worker": it is computed on a
  second replica as soon as that is cheaper. Other prompts keep their places meanwhile.
- A prompt that nobody knows goes where the least work is. An empty cache attracts nothing, so a
  replica that has just started does not get all new texts at once, and those of one that has died
  are spread over the others (no "death spiral").
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from engine.worker.replicas.job import Job
from engine.worker.replicas.prefix_map import Hold, PrefixMap

WEIGHT = 8.0
"""How much more a token to compute counts than one that is queued already: it delays not only its
own request but all that come after it. Chosen in virtual time (docs/decisions/039-replicas.md)."""
MOST_EXTRA = 8192.0
"""The most that the weight adds to a cost, in tokens, so that no cache is worth a long queue: the
work of a full batch of 64 answers."""
LATELY_SHARE = 0.5
"""How much work counts that a replica was given lately beyond the mean, finished or not. Without
it, the busiest of 64 replicas has 1.6 times the mean work (docs/decisions/039-replicas.md)."""
MOST_LATELY = 4096.0
"""The most that this adds to a cost, in tokens, so that no prefix of 512 tokens is computed twice
for the sake of even work."""
LATELY_REQUESTS = 64
"""How many requests a replica gets, on average, until what it was given before counts e times
less."""
ADAPTER_TOKENS = 256
"""The price of an adapter that a replica may have to load, in prompt tokens."""


def price(tokens: float) -> float:
    """What it costs to compute tokens, in tokens that are queued already."""
    return tokens + min((WEIGHT - 1) * tokens, MOST_EXTRA)


@dataclass(slots=True)
class Replica:
    """What is known of one replica."""

    prefixes: PrefixMap
    adapters: OrderedDict[str, None] = field(default_factory=OrderedDict)
    """Those used last, as many as it can use in one step."""
    num_running: int = 0
    work: float = 0.0
    """The work of its running requests, without prompt tokens that are computed already."""
    given: float = 0.0
    """The work that it was given, finished or not; the longer ago, the less it counts."""


@dataclass(slots=True, eq=False)
class Running:
    """A request that a replica has taken."""

    name: str
    """The replica's."""
    replica: Replica
    job: Job
    hold: Hold
    num_pending: int
    """The prompt tokens that are still to be computed, as far as it is known."""
    has_begun: bool = False


class Router:
    """The replicas of one model, by name. Pure: the caller says what happens.

    Args:
        names: the replicas.
        max_idle: the most idle blocks that a replica keeps in its prefix cache.
        num_slots: the adapters that a replica can use in one step.
    """

    def __init__(self, names: Iterable[str], *, max_idle: int, num_slots: int = 0) -> None:
        self._max_idle = max_idle
        self._replicas: dict[str, Replica] = {}
        self._num_slots = num_slots
        self.set_replicas(names)

    def set_replicas(self, names: Iterable[str]) -> None:
        """Note which replicas there are from now on. Nothing is known of new ones."""
        self._replicas = {
            name: self._replicas.get(name) or Replica(PrefixMap(self._max_idle)) for name in names
        }

    def work(self, name: str) -> float:
        """The unfinished work of a replica."""
        return self._replicas[name].work

    def num_running(self, name: str) -> int:
        """The number of a replica's unfinished requests."""
        return self._replicas[name].num_running

    def lacks(self, ready: Sequence[str], num_waking: int) -> bool:
        """Whether another replica would help: each one that is ready has a request, and there are
        more requests than those that wake could take one each."""
        running = [self._replicas[name].num_running for name in ready]
        return all(running) and sum(running) >= len(ready) + num_waking

    def choose(self, job: Job, among: Iterable[str]) -> str:
        """Choose one of some replicas, of which there is at least one."""
        return self.ranked(job, among)[0]

    def ranked(self, job: Job, among: Iterable[str]) -> list[str]:
        """Some replicas, the best one first. Among equals that is the one with the fewest requests,
        then the one that was given the least work."""
        loads = self.loads(among)

        def cost(name: str) -> tuple[float, int, float]:
            one = self._replicas[name]
            missing = sum(adapter not in one.adapters for adapter in job.adapters)
            tokens = job.uncached_tokens(one.prefixes.match(job.chain)) + ADAPTER_TOKENS * missing
            return loads[name] + price(tokens), one.num_running, one.given

        return sorted(loads, key=cost)

    def loads(self, among: Iterable[str]) -> dict[str, float]:
        """What speaks against each of some replicas, whatever is asked for."""
        some = {name: self._replicas[name] for name in among}
        mean = sum(one.given for one in some.values()) / max(1, len(some))
        return {
            name: one.work + min(MOST_LATELY, LATELY_SHARE * max(0.0, one.given - mean))
            for name, one in some.items()
        }

    def begin(self, job: Job, name: str) -> Running:
        """Note that a replica takes a request."""
        replica = self._replicas[name]
        hold = replica.prefixes.hold(job.chain)
        running = Running(name, replica, job, hold, job.uncached_tokens(hold.num_known))
        replica.num_running += 1
        work = running.num_pending + job.work
        replica.work += work
        for one in self._replicas.values():
            one.given *= 1 - 1 / (LATELY_REQUESTS * len(self._replicas))
        replica.given += work
        for adapter in job.adapters:
            replica.adapters[adapter] = None
            replica.adapters.move_to_end(adapter)
        while len(replica.adapters) > self._num_slots:
            replica.adapters.popitem(last=False)
        return running

    def note_first_token(self, running: Running, num_cached_tokens: int) -> None:
        """Note that a request's prompt is computed, and how much of it was cached."""
        replica = running.replica
        running.has_begun = True
        replica.work -= running.num_pending
        running.num_pending = 0
        num_found = -(-num_cached_tokens // running.job.block_size)
        replica.prefixes.correct(running.hold, num_found)

    def end(self, running: Running) -> None:
        """Note that a request has ended, for whatever reason."""
        replica = running.replica
        replica.num_running -= 1
        replica.work -= running.num_pending + running.job.work
        if not replica.num_running:
            replica.work = 0.0  # without what rounding has left
        replica.prefixes.release(running.hold, is_computed=running.has_begun)

    def lose(self, name: str) -> None:
        """Note that a replica has lost its cache, perhaps because its process has ended."""
        replica = self._replicas[name]
        replica.prefixes.forget()
        replica.adapters.clear()
