"""Whether two models mean the same by a token id."""

from engine.errors import ModelLoadError
from engine.text.tokenizer import Tokenizer


def check_same_tokens(model: Tokenizer, draft: Tokenizer, num_tokens: int) -> None:
    """That what a draft model guesses is what the model would read.

    One may have tokens at the end that the other has not, as fine-tuned models do.

    Args:
        num_tokens: ids that both models have.

    Raises:
        ModelLoadError: an id is a different token in the two.
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
        f"speculative_model has another vocabulary than the model: of {num_tokens} tokens that "
        f"both have {len(different)} differ, such as {first}, {draft.token_text(first)!r} and "
        f"{model.token_text(first)!r}; name a model with the same tokenizer",
        param="speculative_model",
    )
