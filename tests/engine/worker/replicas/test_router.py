"""Who takes a request: properties over random traffic, and what went wrong in other routers."""

import random
from collections import Counter
from dataclasses import dataclass, field
from statistics import mean

import pytest

from engine.worker.replicas.job import Job
from engine.worker.replicas.router import LATELY_REQUESTS, MOST_EXTRA, Router, Running, price
from tests.helpers.worker.replicas import blocks, job, serve


def names(number: int) -> list[str]:
    return [f"r{i}" for i in range(number)]


@dataclass
class Machine:
    """Replicas that each compute one request after the other, a token in a unit of time."""

    router: Router
    alive: list[str]
    now: float = 0.0
    free_at: Counter[str] = field(default_factory=Counter)
    running: list[tuple[float, Running]] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)
    computed: Counter[str] = field(default_factory=Counter)
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0

    def send(self, one: Job) -> str:
        name = self.router.choose(one, self.alive)
        running = self.router.begin(one, name)
        tokens = running.num_pending + one.work
        self.free_at[name] = max(self.free_at[name], self.now) + tokens
        self.running.append((self.free_at[name], running))
        self.computed[name] += tokens
        self.num_prompt_tokens += one.num_prompt_tokens
        self.num_cached_tokens += one.num_prompt_tokens - running.num_pending
        self.taken.append(name)
        return name

    def wait(self, seconds: float) -> None:
        self.now += seconds
        for end, running in [*self.running]:
            if end <= self.now:
                found = running.job.num_prompt_tokens - running.num_pending
                self.router.note_first_token(running, found)
                self.router.end(running)
                self.running.remove((end, running))

    def kill(self, name: str) -> None:
        for end, running in [*self.running]:
            if running.name == name:
                self.router.end(running)
                self.running.remove((end, running))
        self.router.lose(name)
        self.alive.remove(name)
        self.free_at[name] = 0

    def take_max_over_mean(self) -> float:
        """How much more than the mean the busiest replica has computed since the last call."""
        computed, self.computed = self.computed, Counter()
        return max(computed.values()) / mean(computed[name] for name in self.alive)


def let_time_pass(router: Router, all_names: list[str]) -> None:
    """So many requests without work that what replicas were given before counts no more."""
    for _ in range(12 * LATELY_REQUESTS * len(all_names)):
        router.end(router.begin(Job(), all_names[0]))
    working = {name: router.work(name) for name in all_names}
    assert router.loads(all_names) == pytest.approx(working, abs=1)


def machine(number: int) -> Machine:
    return Machine(Router(names(number), max_idle=2000), names(number))


def test_a_text_goes_where_its_beginning_is():
    router, all_names = Router(names(4), max_idle=1000), names(4)
    families = [blocks(random.randint(10, 30)) for _ in range(8)]
    homes = [serve(router, job(family), all_names) for family in families]
    for _ in range(50):
        number = random.randrange(len(families))
        beginning = families[number][: random.randint(5, 30)]
        longer = job([*beginning, *blocks(random.randint(0, 10))])
        assert serve(router, longer, all_names) == homes[number]


def test_texts_that_nobody_knows_go_to_the_one_with_the_least_work():
    router, all_names = Router(names(5), max_idle=1000), names(5)
    running = []
    for _ in range(40):
        loads = router.loads(all_names)
        one = job(blocks(random.randint(1, 40)))
        name = router.choose(one, all_names)
        assert loads[name] == min(loads.values())
        running.append(router.begin(one, name))
    assert {one.name for one in running} == set(all_names)


def test_without_a_difference_requests_take_turns():
    router, all_names = Router(names(3), max_idle=0), names(3)
    assert Counter(serve(router, Job(work=1.0), all_names) for _ in range(30)) == Counter(
        dict.fromkeys(all_names, 10)
    )


def test_only_what_is_offered_is_chosen():
    router, family = Router(names(4), max_idle=1000), blocks(20)
    home = serve(router, job(family), names(4))
    others = [name for name in names(4) if name != home]
    assert serve(router, job(family), others) != home
    assert serve(router, job(family), [home]) == home


def test_work_is_counted_from_the_choice_to_the_end_and_never_lost():
    router, all_names, running = Router(names(3), max_idle=200), names(3), []
    pieces = blocks(40)
    for _ in range(400):
        if running and random.random() < 0.5:
            one, has_begun = running.pop(random.randrange(len(running)))
            if not has_begun and random.random() < 0.7:
                router.note_first_token(one, random.randint(0, one.job.num_prompt_tokens))
                running.append((one, True))
            else:
                router.end(one)
        else:
            text = pieces[: random.randint(0, 40)] + blocks(random.randint(0, 5))
            one = job(text, work=random.uniform(0, 100))
            running.append((router.begin(one, router.choose(one, all_names)), False))
        for name in all_names:
            own = [one for one, _ in running if one.name == name]
            assert router.num_running(name) == len(own)
            expected = sum(one.num_pending + one.job.work for one in own)
            assert abs(router.work(name) - expected) < 1e-6
    for one, _ in running:
        router.end(one)
    assert [router.work(name) for name in all_names] == [0.0, 0.0, 0.0]


def test_a_hot_prefix_makes_no_hot_worker_and_others_are_still_found():
    """Most requests begin alike. Their first worker does not take all of them, and those that begin
    in other ways still meet their caches."""
    number = random.randint(4, 8)
    cluster = machine(number)
    hot, cool = blocks(40), [blocks(40) for _ in range(3 * number)]
    for one in cool:
        cluster.send(job(one))
        cluster.wait(900 / number)
    cluster.wait(10_000)
    cluster.take_max_over_mean()
    found = num_cool = 0
    for _ in range(500 * number):
        if random.random() < 0.8:
            cluster.send(job([*hot, *blocks(2)]))
        else:
            before = cluster.num_cached_tokens
            cluster.send(job([*random.choice(cool), *blocks(2)]))
            found += cluster.num_cached_tokens - before
            num_cool += 1
        cluster.wait(60 / number)  # a little more than it takes to compute
    assert cluster.take_max_over_mean() <= 1.3
    assert found / num_cool > 0.9 * 40 * 16


def test_beginnings_that_many_share_do_not_gather_where_nobody_waits():
    """Of replicas that are a third busy, those that have the system prompts of most conversations
    would get these conversations and, turn by turn, most of the work."""
    number = random.randint(24, 40)
    cluster = machine(number)
    systems = [blocks(random.randint(10, 60)) for _ in range(200)]
    weights = [1 / rank for rank in range(1, 201)]
    texts: list[list[bytes]] = []
    in_one_cache, seen = 0, set()
    for _ in range(60 * number):
        if texts and random.random() < 0.5:
            text = texts.pop(random.randrange(len(texts)))
        else:
            [system] = random.choices(systems, weights)
            text = [*system]
        text += blocks(random.randint(10, 60))
        in_one_cache += 16 * next((i for i, one in enumerate(text) if one not in seen), len(text))
        seen |= {*text}
        cluster.send(job(text))
        cluster.wait(3 * 700 / number)
        if len(text) < 150:
            texts.append(text)
    assert cluster.num_cached_tokens >= 0.95 * in_one_cache
    assert cluster.take_max_over_mean() <= 1.3


def test_a_long_prefix_stays_where_it_is_however_uneven_the_work():
    """One user alone, whose conversation goes on and on, computes none of it twice."""
    router, all_names, text = Router(names(4), max_idle=1000), names(4), blocks(32)
    home = serve(router, job(list(text)), all_names)
    for _ in range(4 * LATELY_REQUESTS):
        text[40:] = blocks(random.randint(1, 40))
        assert serve(router, job(list(text), work=100), all_names) == home


def test_a_cache_is_worth_what_it_saves_and_no_more():
    """A replica with more work than that, beyond the least busy one's, is not chosen for it."""
    num_blocks = random.randint(5, 600)
    router, all_names, family = Router(names(5), max_idle=1000), names(5), blocks(num_blocks)
    home = serve(router, job(family), all_names)
    for name in all_names:
        router.begin(Job(work=random.uniform(0, 100)), name)
    let_time_pass(router, all_names)
    least = min(router.work(name) for name in all_names if name != home)
    saved = price(16 * num_blocks + 1) - price(1) + least - router.work(home)
    assert 16 * num_blocks < price(16 * num_blocks) <= 16 * num_blocks + MOST_EXTRA
    busy = router.begin(Job(work=0.99 * saved), home)
    let_time_pass(router, all_names)
    assert router.choose(job(family), all_names) == home
    router.end(busy)
    router.begin(Job(work=1.01 * saved), home)
    let_time_pass(router, all_names)
    assert router.choose(job(family), all_names) != home


def test_no_death_spiral_when_a_replica_dies_and_when_it_comes_back_empty():
    """Those that are left share its requests, and it gets its share of new ones, not all."""
    number = random.randint(4, 8)
    cluster, families = machine(number), [blocks(30) for _ in range(12 * number)]

    def go_on(num_requests: int) -> list[str]:
        first = len(cluster.taken)
        for _ in range(num_requests):
            known = random.random() < 0.7
            beginning = random.choice(families) if known else blocks(30)
            cluster.send(job([*beginning, *blocks(3)]))
            cluster.wait(300 / len(cluster.alive))
        return cluster.taken[first:]

    go_on(60 * number)
    victim = random.choice(cluster.alive)
    cluster.kill(victim)
    cluster.take_max_over_mean()
    assert victim not in go_on(200 * number)
    assert cluster.take_max_over_mean() <= 1.3
    cluster.alive.append(victim)
    back = go_on(200 * number)
    assert back[: 5 * number].count(victim) <= 15, "an empty cache attracts nothing"
    assert cluster.take_max_over_mean() <= 1.3
    assert victim in back[-20 * number :], "it is used again"


def test_a_replica_that_was_lost_has_no_cache():
    router, all_names, family = Router(names(3), max_idle=1000), names(3), blocks(20)
    home = serve(router, job(family), all_names)
    router.lose(home)
    assert router.choose(job(family), all_names) != home, "all cost the same, and it had one before"


def test_a_smaller_picture_of_the_cache_does_not_take_more():
    """SGLang's router sent what nobody knew to the smallest tree, whatever its load."""
    router, all_names = Router(names(2), max_idle=1000), names(2)
    empty, full = all_names
    for _ in range(20):
        serve(router, job(blocks(20)), [full])
    let_time_pass(router, all_names)
    router.begin(job(blocks(20)), empty)
    assert router.choose(job(blocks(10)), all_names) == full


def test_adapters_that_take_turns_stay_where_they_are():
    num_slots = random.randint(1, 3)
    router = Router(names(4), max_idle=1000, num_slots=num_slots)
    adapters = [f"a{i}" for i in range(4 * num_slots)]
    homes = {}
    for adapter in adapters:
        free = [n for n in names(4) if list(homes.values()).count(n) < num_slots]
        homes[adapter] = serve(router, Job(work=10.0, adapters=(adapter,)), free)
    moved = 0
    for _ in range(100):
        adapter = random.choice(adapters)
        moved += serve(router, Job(work=10.0, adapters=(adapter,)), names(4)) != homes[adapter]
    assert moved == 0


def test_hit_rate_and_load_of_conversations_that_grow():
    """Turns come again and again with all that was said before."""
    number = 8
    cluster = machine(number)
    texts = [blocks(random.randint(10, 60)) for _ in range(60)]
    in_one_cache, seen = 0, set()
    for _ in range(1500):
        text = texts[random.randrange(len(texts))]
        text += blocks(random.randint(1, 6))
        if len(text) > 150:
            text[:] = blocks(20)
        known = next((i for i, block in enumerate(text) if block not in seen), len(text))
        in_one_cache += known * 16
        seen |= {*text}
        cluster.send(job(list(text)))
        cluster.wait(110 / number)
    assert cluster.num_cached_tokens >= 0.95 * in_one_cache
    assert cluster.take_max_over_mean() <= 1.3
