"""Checks that two models mean the same by a token id."""

from engine.errors import ModelLoadError
from engine.text.tokenizer import Tokenizer


def check_same_tokens(model: Tokenizer, draft: Tokenizer, num_tokens: int) -> None:
    """Check that the model reads a draft model's tokens as the draft model meant them.

    One model may have tokens at the end that the other lacks, as fine-tuned models do.

    Args:
        num_tokens: number of ids that both models have.

    Raises:
        ModelLoadError: an id is a different token in the two models.
    """
    different = [
        token_id
        for token_id in range(num_tokens)
        if model.token_bytes(token_id) != draft.token_bytes(token_id)
        and model.token_bytes(token_id)
        and draft.token_bytes(token_id)
    ]
    if not different:
        return
    first = different[0]
    raise ModelLoadError(
        f"speculative_model does not have the model's vocabulary: {len(different)} of {num_tokens} "
        f"shared token ids differ, such as {first}, which is {draft.token_text(first)!r} there and "
        f"{model.token_text(first)!r} in the model; use a model with the same tokenizer",
        param="speculative_model",
    )
