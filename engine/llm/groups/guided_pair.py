"""Runs the two sequences of a text with classifier-free guidance, as a `Group`.

The first sequence has the prompt, the second (the guide) the negative prompt; the same text follows
both. The executor combines the logits of both to draw a token (`engine.llm.sampling.guidance`). One
of the two outcomes then is that token, and the other says that it was not known yet.
"""

from engine.contract.generate import TokenEvent
from engine.contract.groups import GuidanceParams
from engine.errors import InvariantViolation
from engine.llm.decision import PENDING_TOKEN_ID
from engine.llm.request import ActiveRequest, Group, Sequence


class GuidedPair(Group):
    """The pair of one completion.

    Args:
        sequences: the completion's own and its guide.
    """

    def __init__(
        self, owner: ActiveRequest, sequences: list[Sequence], params: GuidanceParams
    ) -> None:
        super().__init__(sequences, owner.request.sampling)
        self._main, self._guide = sequences
        num_negative = len(params.negative_token_ids)
        room = min(self.sampling.max_tokens, owner.max_model_len - num_negative)
        most = min(self._main.max_num_tokens, owner.prompt_len + room)
        for sequence, max_num_tokens in ((self._main, most), (self._guide, num_negative + room)):
            sequence.max_num_tokens = max_num_tokens
            sequence.last_num_tokens = min(max_num_tokens, owner.num_slots + 1)
        self._guide.token_ids = list(params.negative_token_ids)
        self._guide.num_prompt_tokens = num_negative
        self._guide.states = ()
        self._guide.guides = self._main.seq_id

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
