"""The rule for token ids in requests."""

from collections.abc import Collection

from engine.errors import InvalidParameter


def check_token_ids(token_ids: Collection[int], vocab_size: int, param: str) -> None:
    """Refuse ids that the model has no row for.

    Raises:
        InvalidParameter: names one of them.
    """
    if token_ids and not (min(token_ids) >= 0 and max(token_ids) < vocab_size):
        bad = next(one for one in token_ids if not 0 <= one < vocab_size)
        raise InvalidParameter(
            f"{param} has token id {bad}; this model's token ids are 0 to {vocab_size - 1}; leave "
            "others out",
            param=param,
        )
