"""Runs the two sequences of a text with classifier-free guidance, as a `Group`.

The first sequence has the prompt, the second (the guide) the negative prompt; the same text follows
both. The executor combines the logits of both to draw a token (`engine.llm.sampling.guidance`). One
of the two outcomes then is that token, and the other says that it was not known yet.
"""

from engine.contract.generate import TokenEvent
from engine.contract.sampling_params import GuidanceParams, SamplingParams
from engine.errors import ContextLengthExceeded, EngineError, InvalidParameter, InvariantViolation
from engine.llm.decision import PENDING_TOKEN_ID, SequenceOutput
from engine.llm.request import ActiveRequest, Sequence, check_token_ids


class GuidedPair:
    """The pair of one completion.

    Args:
        main, guide: the completion's two sequences.
        max_model_len: the most tokens that either may have.
    """

    def __init__(
        self,
        owner: ActiveRequest,
        main: Sequence,
        guide: Sequence,
        params: GuidanceParams,
        max_model_len: int,
    ) -> None:
        self.sampling = owner.request.sampling
        self.sequences = [main, guide]
        self._main, self._guide = main, guide
        self._outcomes: dict[Sequence, SequenceOutput] = {}
        num_negative = len(params.negative_token_ids)
        room = min(self.sampling.max_tokens, max_model_len - num_negative)
        most = min(self._main.max_num_tokens, owner.prompt_len + room)
        for sequence, max_num_tokens in ((self._main, most), (self._guide, num_negative + room)):
            sequence.max_num_tokens = max_num_tokens
            sequence.last_num_tokens = min(max_num_tokens, owner.num_slots + 1)
        self._guide.token_ids = list(params.negative_token_ids)
        self._guide.num_prompt_tokens = num_negative
        self._guide.guides = self._main.seq_id

    @property
    def keeps_outcome(self) -> bool:
        """See `Group`."""
        return True

    def waits(self, sequence: Sequence) -> bool:
        """See `Group`."""
        return sequence in self._outcomes

    def note(self, sequence: Sequence, result: SequenceOutput) -> bool:
        """See `Group`."""
        sequence.note_scores(result)
        if not result.token_ids:
            return False
        self._outcomes[sequence] = result
        return len(self._outcomes) == 2

    def advance(self) -> list[TokenEvent]:
        """See `Group`."""
        drawn = [one for one in self._outcomes.values() if one.token_ids != [PENDING_TOKEN_ID]]
        self._outcomes.clear()
        if len(drawn) != 1:
            raise InvariantViolation(f"{len(drawn)} of the two guided rows brought a token")
        (result,), main = drawn, self._main
        _, reason = main.accept(result.token_ids)
        self._guide.token_ids += result.token_ids
        return [
            main.report(
                token_ids=result.token_ids,
                logprobs=result.logprobs,
                prompt_logprobs=main.take_scores(),
                finish_reason=reason,
                stop_token_id=main.stop_token_id,
            )
        ]

    def restart(self) -> None:
        """See `Group`."""
        self._outcomes.clear()

    def leave_out(self, index: int) -> bool:
        """See `Group`."""
        return index == self._main.index

    def fail(self, error: EngineError) -> list[TokenEvent]:
        """See `Group`."""
        return [self._main.fail(error)]


def check_guidance(
    sampling: SamplingParams,
    params: GuidanceParams,
    max_num_running: int,
    max_model_len: int,
    vocab_size: int,
) -> None:
    """Refuse guidance that cannot run. The server checks it too, but the engine does not rely on
    that.

    Raises:
        InvalidParameter, ContextLengthExceeded: the error names the field and the limit.
    """
    if sampling.beams is not None or sampling.contrast is not None:
        raise InvalidParameter(
            "guidance_scale cannot be combined with beam search or penalty_alpha; leave one out",
            param="guidance_scale",
        )
    if max_num_running < 2:
        raise InvalidParameter(
            "guidance_scale takes two places, and this model runs one sequence at a time: leave "
            "guidance_scale out, or raise max_num_seqs",
            param="guidance_scale",
        )
    if sampling.max_tokens < 1:
        raise InvalidParameter("guidance_scale needs max_tokens of at least 1", param="max_tokens")
    num_tokens = len(params.negative_token_ids)
    if num_tokens < 1:
        raise InvalidParameter(
            "the negative prompt is empty; send at least one token", param="negative_prompt"
        )
    check_token_ids(params.negative_token_ids, vocab_size, "negative_prompt")
    if num_tokens >= max_model_len:
        raise ContextLengthExceeded.beyond(
            max_model_len,
            f"the negative prompt has {num_tokens} tokens. Please shorten it.",
            param="negative_prompt",
        )
