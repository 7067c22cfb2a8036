"""Text to token ids and back, for one model.

This wraps the `tokenizers` library, so the server needs neither transformers nor torch.
`load_tokenizer` makes a tokenizer from a checkpoint folder or a GGUF file.
"""

from collections.abc import Sequence
from pathlib import Path

from engine.errors import InvalidParameter, ModelNotFound
from engine.text.gguf_tokenizer import read_gguf_tokenizer
from engine.text.token_pieces import create_pieces
from engine.text.tokenizer_folder import read_tokenizer_folder
from engine.text.tokenizer_parts import TokenizerParts


class Tokenizer:
    """A model's tokenizer. Thread-safe once built; long texts are encoded without holding the
    interpreter's lock."""

    def __init__(self, parts: TokenizerParts) -> None:
        raw = parts.raw
        # A checkpoint's settings for padding and truncation are meant for training.
        raw.no_padding()
        raw.no_truncation()
        added = raw.get_added_tokens_decoder()
        bos = parts.special_tokens.get("bos_token")
        self.raw = raw
        self.bos_token_id = raw.token_to_id(bos) if bos is not None else None
        self.eos_token_ids = parts.eos_token_ids
        self.chat_template = parts.chat_template
        self.special_tokens = dict(parts.special_tokens)
        self.special_token_ids = frozenset(i for i, token in added.items() if token.special)
        """The tokens that `skip_special_tokens` leaves out of decoded text."""
        self.vocab_size = max(
            raw.get_vocab_size(with_added_tokens=False), *(i + 1 for i in added), 0
        )
        """One more than the largest token id. The model's output layer may be padded beyond it."""
        self.pieces = create_pieces(raw)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of `text`. Special tokens written out in it count as special tokens.

        Args:
            add_special_tokens: whether to add begin-of-text and the like as the model requires.
                Chat templates write them out themselves, so it is False for rendered conversations.

        Raises:
            InvalidParameter: the text has half of a surrogate pair.
        """
        try:
            # Unlike encode(), this releases the interpreter's lock, and it computes no offsets.
            return self.raw.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids
        except TypeError:
            if not isinstance(text, str):
                raise
            raise InvalidParameter(
                "the text has half of a UTF-16 surrogate pair, which is not a character; send "
                "valid Unicode"
            ) from None

    def encode_literally(self, text: str) -> list[int]:
        """Return the token ids of `text` alone. Special tokens written out in it are ordinary text,
        as in llama.cpp's programs. Unlike `encode`, this is not thread-safe.

        Raises:
            InvalidParameter: the text has half of a surrogate pair.
        """
        self.raw.encode_special_tokens = True
        try:
            return self.encode(text, add_special_tokens=False)
        finally:
            self.raw.encode_special_tokens = False

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of token ids; ids without a token have none.

        Bytes that are not UTF-8 become U+FFFD as in Python. The `tokenizers` library does the same
        for byte-level BPE; but with SentencePiece it also replaces the valid bytes around an
        invalid one, which a stream has long sent.
        """
        if self.pieces is None:
            return self.raw.decode(list(ids), skip_special_tokens=skip_special_tokens)
        skipped = self.special_token_ids if skip_special_tokens else ()
        data = b"".join([self.pieces[i] for i in ids if i not in skipped])
        if self.pieces.strips_space and data.startswith(b" "):
            data = data[1:]
        return data.decode(errors="replace")

    def token_text(self, token_id: int) -> str:
        """Return one token's text, special or not; U+FFFD where it is a part of a character."""
        return self.token_bytes(token_id).decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """Return one token's bytes. Joined, the bytes of a sequence's tokens are the UTF-8 of its
        text."""
        if self.pieces is None:
            return self.raw.decode([token_id], skip_special_tokens=False).encode()
        return self.pieces[token_id]


def load_tokenizer(path: Path) -> Tokenizer:
    """Load the tokenizer of a checkpoint.

    Args:
        path: a folder in Hugging Face's layout, or a GGUF file.

    Raises:
        ModelNotFound: there is nothing at `path`, or the folder has no tokenizer.
        UnsupportedArchitecture: the kind of tokenizer is unknown; the message names it.
        CorruptFile: a file is damaged.
    """
    if path.is_dir():
        return Tokenizer(read_tokenizer_folder(path))
    if path.is_file():
        return Tokenizer(read_gguf_tokenizer(path))
    raise ModelNotFound("the tokenizer's checkpoint is neither a folder nor a GGUF file")
