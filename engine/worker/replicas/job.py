"""What a request asks of the replica that takes it: prompt tokens, and work until it ends.

Each kind of model has its own unit: tokens of texts, pixels times steps of images. Only replicas of
one model are compared.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engine.contract.draw import ImageParams, ImageRequest
from engine.contract.enlarge import UpscaleRequest
from engine.contract.generate import GenerateRequest, ModelInfo
from engine.contract.matte import MattingRequest
from engine.contract.request import AdaptableInfo, Info, Request
from engine.contract.whole_texts import WholeTextsRequest
from engine.llm.cache.prefix_cache import chain_root, extend_chain

ANSWER_TOKENS = 128
"""The work of an answer whose length nobody knows, in prompt tokens. On the CPUs that
`docs/SCALING.md` is about, a generated token takes about as long as 1.5 prompt tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A request, as far as it matters who takes it."""

    num_prompt_tokens: int = 0
    """The work that ends with the first token, unless it is cached."""
    work: float = 0.0
    """The work until the request ends."""
    chain: Sequence[bytes] = ()
    """The hashes of the prompt's full blocks."""
    block_size: int = 1
    adapters: tuple[str, ...] = ()
    """The adapters that a replica may have to load for it."""

    def uncached_tokens(self, num_blocks: int) -> int:
        """The prompt tokens to compute where that many first blocks are cached. The last token
        always is computed, because its logits are needed."""
        found = min(num_blocks * self.block_size, max(0, self.num_prompt_tokens - 1))
        return self.num_prompt_tokens - found


def job_of(request: Request[Any], info: Info, num_slots: int) -> Job:
    """A request's job.

    Args:
        info: the model.
        num_slots: the adapters that a replica can use in one step.
    """
    names = request.adapter_names
    takes_turns = isinstance(info, AdaptableInfo) and len(info.adapters) > num_slots
    adapters = names if takes_turns else ()
    if isinstance(request, GenerateRequest) and isinstance(info, ModelInfo):
        return _text_job(request, info.kv_block_size, adapters)
    return Job(work=_work(request), adapters=adapters)


def _text_job(request: GenerateRequest, block_size: int, adapters: tuple[str, ...]) -> Job:
    sampling, chain = request.sampling, list[bytes]()
    if sampling.prompt_logprobs is None:  # scores of a prompt are computed, never found
        root = chain_root(request.cache_salt, request.adapter)
        extend_chain(chain, root, request.prompt_token_ids, block_size, request.states)
    return Job(
        num_prompt_tokens=len(request.prompt_token_ids),
        work=request.num_completions * min(sampling.max_tokens, ANSWER_TOKENS),
        chain=chain,
        block_size=block_size,
        adapters=adapters,
    )


def _work(request: Request[Any]) -> float:
    if isinstance(request, ImageRequest):
        params: ImageParams = request.params
        pixels = sum(one.width * one.height * one.num_steps for one in params.passes)
        return params.n * pixels
    if isinstance(request, UpscaleRequest):
        return request.image.width * request.image.height
    if isinstance(request, MattingRequest):
        return request.image.width * request.image.height
    if isinstance(request, WholeTextsRequest):
        return request.num_input_tokens
    return request.num_completions
