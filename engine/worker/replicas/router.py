"""Chooses the replica that takes a request: the one where it costs least.

    cost  =  prompt tokens to compute there  +  work that is there already

So a request goes where most of its prompt is cached, unless computing the prompt anew elsewhere is
sooner done than waiting there. Work counts from the choice to the end of the request, not from the
first answer, and only replicas that are offered to `choose` count.

- A replica with much more work than the mean takes no request for its cache's sake (a "hot
  worker"); the bound is that of consistent hashing with bounded loads (Mirrokni et al. 2018,
  arXiv:1608.01350). The others keep their affinity meanwhile.
- A prompt that nobody knows goes where the least work is. An empty cache attracts nothing, so a
  replica that has just started does not get all new texts at once, and those of one that has died
  are spread over the others (a "death spiral").
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

from engine.worker.replicas.job import Job
from engine.worker.replicas.prefix_map import Hold, PrefixMap

MOST_OVER_MEAN = 1.25
"""How many times the mean work a replica may have and still be chosen for its cache."""
ADAPTER_TOKENS = 256
"""The price of an adapter that a replica may have to load, in prompt tokens."""


@dataclass(slots=True)
class Replica:
    """What is known of one replica."""

    prefixes: PrefixMap
    adapters: OrderedDict[str, None] = field(default_factory=OrderedDict)
    """Those used last, as many as it can use in one step."""
    num_running: int = 0
    work: float = 0.0
    """The work of its running requests, without prompt tokens that are computed already."""
    num_chosen: int = 0


@dataclass(slots=True, eq=False)
class Running:
    """A request that a replica has taken."""

    name: str
    """The replica's."""
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
        most_over_mean: see `MOST_OVER_MEAN`.
    """

    def __init__(
        self,
        names: Iterable[str],
        *,
        max_idle: int,
        num_slots: int = 0,
        most_over_mean: float = MOST_OVER_MEAN,
    ) -> None:
        self._replicas = {name: Replica(PrefixMap(max_idle)) for name in names}
        self._num_slots = num_slots
        self._most_over_mean = most_over_mean

    def work(self, name: str) -> float:
        """The unfinished work of a replica."""
        return self._replicas[name].work

    def num_running(self, name: str) -> int:
        """The number of a replica's unfinished requests."""
        return self._replicas[name].num_running

    def choose(self, job: Job, among: Iterable[str]) -> str:
        """Choose one of some replicas, of which there is at least one. Ties go to the one with the
        fewest requests, then to the one that was chosen least."""
        found = [(name, self._replicas[name]) for name in among]
        most = self._most_over_mean * sum(one.work for _, one in found) / len(found)
        most += job.num_prompt_tokens + job.work

        def cost(entry: tuple[str, Replica]) -> tuple[float, int, int]:
            _, one = entry
            is_hot = one.work > most
            num_blocks = 0 if is_hot else one.prefixes.match(job.chain)
            missing = 0 if is_hot else sum(name not in one.adapters for name in job.adapters)
            price = job.uncached_tokens(num_blocks) + ADAPTER_TOKENS * missing
            return one.work + price, one.num_running, one.num_chosen

        return min(found, key=cost)[0]

    def begin(self, job: Job, name: str) -> Running:
        """Note that a replica takes a request."""
        replica = self._replicas[name]
        hold = replica.prefixes.hold(job.chain)
        running = Running(name, job, hold, job.uncached_tokens(hold.num_known))
        replica.num_running += 1
        replica.num_chosen += 1
        replica.work += running.num_pending + job.work
        for adapter in job.adapters:
            replica.adapters[adapter] = None
            replica.adapters.move_to_end(adapter)
        while len(replica.adapters) > self._num_slots:
            replica.adapters.popitem(last=False)
        return running

    def note_first_token(self, running: Running, num_cached_tokens: int) -> None:
        """Note that a request's prompt is computed, and how much of it was cached."""
        replica = self._replicas[running.name]
        running.has_begun = True
        replica.work -= running.num_pending
        running.num_pending = 0
        num_found = -(-num_cached_tokens // running.job.block_size)
        replica.prefixes.correct(running.hold, num_found)

    def end(self, running: Running) -> None:
        """Note that a request has ended, for whatever reason."""
        replica = self._replicas[running.name]
        replica.num_running -= 1
        replica.work -= running.num_pending + running.job.work
        if not replica.num_running:
            replica.work = 0.0  # without what rounding has left
        replica.prefixes.release(running.hold, is_computed=running.has_begun)

    def lose(self, name: str) -> None:
        """Note that a replica's process has ended, and its cache with it."""
        replica = self._replicas[name]
        replica.prefixes.forget()
        replica.adapters.clear()
