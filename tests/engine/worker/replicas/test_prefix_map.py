"""The router's picture of a prefix cache, against the cache itself."""

import random

from engine.llm.scheduler import Scheduler
from engine.worker.replicas.job import job_of
from engine.worker.replicas.prefix_map import PrefixMap
from engine.worker.replicas.router import Router
from tests.helpers.llm.paged_executor import VOCAB_SIZE, make_config, make_request
from tests.helpers.worker.replicas import blocks, finish, text_model


def test_the_picture_is_that_of_the_scheduler_as_long_as_answers_fill_no_block():
    """Texts of a few families, one after the other, in a cache that is too small for all."""
    most = random.randint(10, 40)
    config = make_config(max_idle_cached_blocks=most, num_kv_blocks=most + 40)
    scheduler = Scheduler(config, eos_token_ids=(0,), vocab_size=VOCAB_SIZE)
    router = Router(["only"], max_idle=most)
    families = [random.choices(range(1, VOCAB_SIZE), k=60) for _ in range(4)]
    wrong = num_cached = 0
    for number in range(150):
        family = random.choice(families)
        start = random.randint(4, 60)
        text = family[:start] + random.choices(range(1, VOCAB_SIZE), k=random.randint(1, 40))
        request = make_request(f"r{number}", text, max_tokens=1)
        job = job_of(request, text_model(block_size=config.block_size), 0)
        running = router.begin(job, "only")
        scheduler.add(request)
        [event] = finish(scheduler)
        expected = job.num_prompt_tokens - running.num_pending
        wrong += event.num_cached_tokens != expected
        num_cached += event.num_cached_tokens
        router.note_first_token(running, event.num_cached_tokens)
        router.end(running)
    assert num_cached > 0
    assert wrong == 0


def test_a_missing_block_tells_about_those_that_were_idle_for_longer():
    prefixes = PrefixMap(max_idle=100)
    old, middle, new = blocks(5), blocks(5), blocks(5)
    for chain in (old, middle, new):
        prefixes.release(prefixes.hold(chain), is_computed=True)
    hold = prefixes.hold(middle)
    assert hold.num_known == 5
    prefixes.correct(hold, 2)
    assert (prefixes.match(old), prefixes.match(middle), prefixes.match(new)) == (0, 5, 5)


def test_blocks_that_were_never_computed_are_not_believed_to_be_there():
    prefixes = PrefixMap(max_idle=100)
    known, new = blocks(3), blocks(4)
    prefixes.release(prefixes.hold(known), is_computed=True)
    prefixes.release(prefixes.hold([*known, *new]), is_computed=False)
    assert prefixes.match([*known, *new]) == 3


def test_its_size_is_bounded_by_the_idle_and_the_running_whatever_comes():
    most = random.randint(0, 50)
    prefixes, holds, pieces = PrefixMap(most), [], blocks(30)
    for _ in range(500):
        if holds and random.random() < 0.5:
            hold = holds.pop(random.randrange(len(holds)))
            prefixes.release(hold, is_computed=random.random() < 0.8)
        else:
            start = random.randint(0, 25)
            holds.append(prefixes.hold(pieces[:start] + blocks(random.randint(0, 8))))
        running = {block for hold in holds for block in hold.chain}
        assert len(prefixes) <= most + len(running)
    for hold in holds:
        prefixes.release(hold, is_computed=True)
    assert len(prefixes) <= most
    prefixes.forget()
    assert len(prefixes) == 0
