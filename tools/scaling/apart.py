"""Replicas of which some compute prompts and the others continue them, in virtual time."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from engine.contract.generate import GenerateRequest, TokenEvent
from engine.errors import OutOfBlocks
from engine.llm.cache.kv_cache import BlockPool
from engine.llm.cache.prefix_cache import chain_root, extend_chain
from engine.worker.replicas.job import job_of
from tools.scaling.cluster import Cluster, Outcome, Served
from tools.scaling.replica import Machine, request_of


class ApartCluster(Cluster):
    """The first replicas compute prompts, each where its prefix is cached. Then the blocks go to
    the one of the others that has the least work.

    Args:
        transfer_s: how long it takes until the blocks of so many tokens have come.
    """

    def __init__(
        self,
        machine: Machine,
        num_prefilling: int,
        num_decoding: int,
        transfer_s: Callable[[int], float],
    ) -> None:
        super().__init__(machine, num_prefilling + num_decoding)
        names = [*self._replicas]
        self._prefilling, self._decoding = names[:num_prefilling], names[num_prefilling:]
        self._transfer_s = transfer_s

    def _send(self, one: Served, outcome: Outcome | None) -> None:
        request = request_of(str(next(self._ids)), replace(one.sent, answer_len=1))
        job = job_of(request, self._info, 0)
        one.num_tries += 1
        self._give(request, job, self._choose(job, self._prefilling), one)

    def _note(self, event: TokenEvent) -> None:
        one = self._live[event.request_id]
        assert one.running is not None
        if one.replica in self._decoding:
            known = one.num_cached
            super()._note(event)
            one.num_cached = known  # what was computed elsewhere is no hit
            return
        one.num_cached = event.num_cached_tokens
        self._router.note_first_token(one.running, one.num_cached)
        self._router.end(one.running)
        del self._live[event.request_id]
        at_s = self._now_s + self._transfer_s(len(one.sent.prompt))
        self._at(at_s, partial(self._continue, one))

    def _continue(self, one: Served) -> None:
        request = request_of(str(next(self._ids)), one.sent)
        whole = job_of(request, self._info, 0)
        # Its prompt is no work here.
        job = replace(whole, chain=(), num_prompt_tokens=1)
        name = self._choose(job, self._decoding)
        enter(self._replicas[name].scheduler.pool, request, self._machine.max_idle_blocks)
        self._give(request, job, name, one)


def enter(pool: BlockPool, request: GenerateRequest, most_blocks: int) -> None:
    """Put the full blocks of a prompt into a prefix cache, as far as there is room, as
    `engine.llm.kv_store.restoring` does."""
    root = chain_root(request.cache_salt, request.adapter)
    chain: Sequence[bytes] = extend_chain([], root, request.prompt_token_ids, pool.block_size)
    for block_hash in chain[:most_blocks]:
        if pool.cache.has(block_hash, 0):
            continue
        try:
            block_id = pool.allocate()
        except OutOfBlocks:
            return
        pool.set_written(block_id, pool.block_size)
        pool.cache.register(block_id, block_hash, 0)
        pool.release(block_id)
