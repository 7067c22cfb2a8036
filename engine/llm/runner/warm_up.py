"""The steps that a runner runs before it serves, so that no request pays for what happens only
once.

On a CPU they fill caches and load what is loaded at its first use. On a GPU they compile every
kernel that a later step may launch. Kernels are not specialised by row count and differ by few
properties of a batch: whether there are at most 16, at most 64 or more rows, in the layers, in the
head and among scored tokens; whether a context is longer than one split of the keys; and whether
rows have alternatives and edits.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from engine.contract.picture_facts import PictureFacts
from engine.contract.prompt_states import StatePart
from engine.contract.resolved_config import ResolvedConfig
from engine.contract.sampling_params import SamplingParams
from engine.llm.decision import (
    GroupBlocks,
    NewSequence,
    RecurrentSlots,
    ScheduleDecision,
    ScheduledSequence,
    StateRows,
)

CPU_ROWS = (1, 16, 32)
"""The sizes of decode steps on a CPU."""
GPU_ROWS = (1, 2, 17, 65)
"""The sizes of steps on a GPU, one of each kind; a chunk of two tokens is the smallest that is not
a decode."""
GPU_ROWS_OF_PICTURE = 100
"""The rows of a picture on a GPU: enough for the kernels of long chunks."""
FIRST_SPLIT = 512
"""The number of keys that attention on a GPU processes in one piece."""
GREEDY = SamplingParams(temperature=0.0, max_tokens=1)


@dataclass(frozen=True, slots=True)
class Text:
    """A text of zero tokens, all in the first block, which has no owner yet."""

    num_tokens: int
    """The number of tokens in this step."""
    num_cached: int = 0
    """The number of tokens before this step."""
    sampling: SamplingParams = GREEDY
    """The sampling parameters; with `prompt_logprobs` all tokens of the step are scored."""
    part: StatePart | None = None
    """The part that its first rows are, if any."""


WarmUpStep = list[Text]


def warm_up_steps(
    config: ResolvedConfig, more_rows: Iterable[int] = (), pictures: PictureFacts | None = None
) -> list[WarmUpStep]:
    """Return the warm-up steps, in the order in which they must run.

    Args:
        more_rows: on a GPU, further chunk sizes, beside `GPU_ROWS`, for which a model has kernels.
        pictures: how the model sees pictures; None if it takes none.
    """
    if config.device == "cpu":
        most = config.max_decode_rows
        sizes = sorted({min(rows, most) for rows in CPU_ROWS})
        chunk = min(config.block_size, _most_tokens(config))
        steps = [*([Text(1)] * size for size in sizes), [Text(chunk)]]
        return steps + _pictures(config, pictures, most_states=1)
    steps = [*_decodes(config), *_chunks(config, {*GPU_ROWS, *more_rows})]
    return steps + _pictures(config, pictures, most_states=GPU_ROWS_OF_PICTURE)


def largest_steps(config: ResolvedConfig, pictures: PictureFacts | None = None) -> list[WarmUpStep]:
    """Return the steps that take most memory: a chunk that fills the budget, with all its tokens
    scored, as many decodes as possible, with the longest contexts and a list of alternatives each,
    and a picture."""
    chunk = _most_tokens(config)
    decode = Text(1, config.max_model_len - 1, SamplingParams(max_tokens=1, logprobs=20))
    return [
        [Text(chunk, sampling=SamplingParams(max_tokens=1, prompt_logprobs=20))],
        [decode] * config.max_decode_rows,
        *_pictures(config, pictures, most_states=config.max_model_len),
    ]


def decision(
    texts: WarmUpStep, block_size: int, num_groups: int = 1, *, num_slots: int = 0
) -> ScheduleDecision:
    """Make the decision that a scheduler would make for such a step and `num_groups` layer groups.
    Its sequences have negative ids.

    Args:
        num_slots: the slots for recurrent states; if there are fewer than texts, some share one,
            since nobody reads it.
    """
    return ScheduleDecision(
        encoded=[text.part for text in texts if text.part is not None],
        new=[_sequence(-1 - i, text) for i, text in enumerate(texts)],
        scheduled=[
            _scheduled(
                -1 - i,
                text,
                block_size,
                num_groups,
                RecurrentSlots(None, i % num_slots) if num_slots else None,
            )
            for i, text in enumerate(texts)
        ],
    )


def _most_tokens(config: ResolvedConfig) -> int:
    """The most tokens that one text may have in one step."""
    return min(config.max_num_batched_tokens, config.max_model_len)


def _pictures(
    config: ResolvedConfig, pictures: PictureFacts | None, most_states: int
) -> list[WarmUpStep]:
    """Make a step with a black picture, if the model takes pictures.

    Args:
        most_states: see `PictureFacts.largest`.
    """
    if pictures is None:
        return []
    part = pictures.largest(most_states)
    return [[Text(min(part.length, _most_tokens(config)), part=part)]]


def _decodes(config: ResolvedConfig) -> list[WarmUpStep]:
    """Make steps of one token per text, for all ways to choose the token."""
    most = config.max_decode_rows
    steps: list[WarmUpStep] = [[Text(1)] * rows for rows in GPU_ROWS if rows <= most]
    for sampling in (
        SamplingParams(max_tokens=1, logprobs=0),
        SamplingParams(max_tokens=1, logprobs=1),
        SamplingParams(max_tokens=1, logit_bias={0: 1.0}),
    ):
        steps.append([Text(1, sampling=sampling)])
    if config.max_model_len > FIRST_SPLIT:
        steps.append([Text(1, FIRST_SPLIT)])
    return steps


def _chunks(config: ResolvedConfig, sizes: Iterable[int]) -> list[WarmUpStep]:
    """Make steps of prompts whose tokens are scored, so that the head has as many rows."""
    return [
        [Text(rows, sampling=SamplingParams(max_tokens=1, prompt_logprobs=num_top))]
        for rows in sorted(sizes)
        if rows <= _most_tokens(config)
        for num_top in (0, 1)
    ]


def _sequence(seq_id: int, text: Text) -> NewSequence:
    # One token more, so that the last one is scored, too.
    prompt = [0] * (text.num_cached + text.num_tokens + 1)
    return NewSequence(seq_id, prompt, text.sampling, 0, 0, ())


def _state_rows(part: StatePart, num_rows: int) -> list[StateRows]:
    found = part.stretches(0, num_rows)
    return [StateRows(part.digest, state, row, number) for row, state, number in found]


def _scheduled(
    seq_id: int, text: Text, block_size: int, num_groups: int, recurrent: RecurrentSlots | None
) -> ScheduledSequence:
    num_blocks = -(-(text.num_cached + text.num_tokens) // block_size)
    return ScheduledSequence(
        seq_id,
        [0] * text.num_tokens,
        text.num_cached,
        [GroupBlocks([0] * num_blocks)] * num_groups,
        num_draws=1,
        num_output_tokens=0,
        prompt_logprobs=text.sampling.prompt_logprobs is not None,
        states=[] if text.part is None else _state_rows(text.part, text.num_tokens),
        recurrent=recurrent,
    )
