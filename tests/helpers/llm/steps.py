"""Steps of a runner, made by hand."""

import torch

from engine.contract.sampling_params import SamplingParams
from engine.llm.decision import GroupBlocks, NewSequence, ScheduleDecision, ScheduledSequence
from tests.helpers.llm.paged_executor import make_config

CPU = torch.device("cpu")
BLOCK = 4


def resolved(**overrides):
    few = {"max_num_batched_tokens": 64, "max_idle_cached_blocks": 8, "max_num_queued": 8}
    return make_config(**(few | overrides))


def new(seq_id, prompt, **sampling):
    params = SamplingParams(**({"temperature": 0.0} | sampling))
    return NewSequence(seq_id, list(prompt), params, seed=seq_id, index=0, suppressed_token_ids=())


def part(seq_id, tokens, start, blocks, *, num_draws=1, num_output=0, score=False):
    groups = [GroupBlocks(blocks)]
    return ScheduledSequence(
        seq_id, list(tokens), start, groups, num_draws, num_output, prompt_logprobs=score
    )


def first_step(prompts, blocks, **sampling):
    """Whole new prompts, by the ids of their sequences."""
    return ScheduleDecision(
        new=[new(i, p, **sampling) for i, p in prompts.items()],
        scheduled=[part(i, p, 0, blocks[i]) for i, p in prompts.items()],
    )
