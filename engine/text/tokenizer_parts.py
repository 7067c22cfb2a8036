"""The facts that a loader finds about a tokenizer, and functions to set its begin-of-text token.

Made by `tokenizer_folder` and `gguf_tokenizer`; `Tokenizer` is built from it.
"""

from dataclasses import dataclass

from tokenizers import AddedToken
from tokenizers import Tokenizer as RawTokenizer
from tokenizers.processors import TemplateProcessing


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerParts:
    """A tokenizer and the facts that the `tokenizers` library does not keep."""

    raw: RawTokenizer
    special_tokens: dict[str, str]
    """The special tokens that exist, by their names in chat templates: `bos_token`, `eos_token`
    ..."""
    eos_token_ids: tuple[int, ...] = ()
    """Tokens that end an answer; several where turns and texts end differently."""
    chat_template: str | None = None


def with_tool_template(template: str, for_tools: str) -> str:
    """Combine two chat templates into one, as some checkpoints have one for chats with tools."""
    return f"{{% if tools %}}{for_tools}{{% else %}}{template}{{% endif %}}"


def set_boundary_tokens(raw: RawTokenizer, bos: str | None, eos: str | None) -> None:
    """Make `encode` put `bos` before and `eos` after the text; None adds nothing."""
    tokens = [token for token in (bos, eos) if token is not None]
    raw.post_processor = TemplateProcessing(
        single=[*([bos] if bos else []), "$A", *([eos] if eos else [])],
        pair=["$A", "$B:1"],
        special_tokens=[(token, raw.token_to_id(token)) for token in dict.fromkeys(tokens)],
    )


def mark_special(raw: RawTokenizer, tokens: list[str]) -> None:
    """Match these tokens whole in any text, and leave them out of decoded text."""
    raw.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in tokens])
