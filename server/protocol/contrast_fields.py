"""The field of a request for contrastive search, which also uses the sampler parameter `top_k`."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field

from engine.contract.sampling_params import MAX_CANDIDATES, MIN_CANDIDATES
from engine.errors import InvalidParameter
from server.protocol.search_fields import OF_DRAWS, check_neutral


class ContrastFields(BaseModel):
    """Contrastive search, which steers away from repeating the text."""

    penalty_alpha: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Contrastive search instead of drawing tokens: of the top_k likeliest "
        f"tokens, {MIN_CANDIDATES} to {MAX_CANDIDATES}, take the one with the highest "
        "(1 - penalty_alpha) * probability - penalty_alpha * similarity to the text "
        "before it. 0, the default, is off.",
    )


def check_contrast(request: ContrastFields, top_k: int | None) -> None:
    """Refuse fields that cannot be combined with contrastive search.

    Raises:
        InvalidParameter: names the field.
    """
    if not request.penalty_alpha:
        return
    if top_k is None or not MIN_CANDIDATES <= top_k <= MAX_CANDIDATES:
        raise InvalidParameter(
            f"with penalty_alpha, top_k must be the number of candidate tokens, {MIN_CANDIDATES} "
            f"to {MAX_CANDIDATES}",
            param="top_k",
        )
    check_neutral(request, _NOT_BESIDE, "cannot be combined with penalty_alpha; leave it out")


_NOT_BESIDE: Mapping[str, tuple[Any, ...]] = {
    name: neutral
    for name, neutral in OF_DRAWS.items()
    if name not in ("top_k", "stop", "repetition_detection")
} | {
    "use_beam_search": (False,),
    "guidance_scale": (1,),
    "n": (1,),
    "best_of": (1,),
    "min_tokens": (0,),
}
