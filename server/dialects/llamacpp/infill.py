"""The prompt for a gap, in the form of llama-server's `format_prompt_infill`.

https://github.com/ggml-org/llama.cpp/blob/master/tools/server/server-common.cpp
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from engine.errors import UnsupportedFeature
from server.dialects.llamacpp.protocol import LlamaInfillRequest

IdOf = Callable[[str], int | None]
"""Returns a token's id by its text, if the vocabulary has it."""

_GAPS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    ("<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581hole\uff5c>", "<\uff5cfim\u2581end\uff5c>"),
    ("\u2581<PRE>", "\u2581<SUF>", "\u2581<MID>"),
    ("<PRE>", "<SUF>", "<MID>"),
    ("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),
    ("<|prefix|>", "<|suffix|>", "<|middle|>"),
)
"""Tokens before the prefix, the suffix and the filling of a gap: Qwen's and Gemma's, StarCoder's,
Granite's, DeepSeek's, Code Llama's (twice), GLM's, Falcon's."""
_REPOSITORIES = ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>")
_FILES = ("<|file_sep|>",)
_PADS = ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>")

_PROJECT, _FILE = "myproject\n", "filename\n"
_SNIPPET = "\n\n--- snippet ---\n\n"


@dataclass(frozen=True, slots=True)
class GapTokens:
    """The tokens by which a model knows a gap, and other files."""

    before: int
    behind: int
    gap: int
    repository: int | None
    file: int | None
    pad: int | None

    @classmethod
    def of(cls, id_of: IdOf) -> "GapTokens":
        """The tokens for gaps in a vocabulary.

        Raises:
            UnsupportedFeature: the vocabulary has no such tokens.
        """
        for names in _GAPS:
            before, behind, gap = (id_of(name) for name in names)
            if before is not None and behind is not None and gap is not None:
                others = (_first(names, id_of) for names in (_REPOSITORIES, _FILES, _PADS))
                return cls(before, behind, gap, *others)
        raise UnsupportedFeature(
            "this model has no tokens that mark a gap (such as <|fim_prefix|>), so it cannot "
            "fill one; use a code model that has them, or /v1/completions",
            param="input_prefix",
        )

    @property
    def ends(self) -> list[int]:
        """The tokens that end the text in a gap."""
        others = (self.repository, self.file, self.pad)
        return [self.before, self.behind, self.gap, *(id for id in others if id is not None)]


def texts_of(body: LlamaInfillRequest) -> list[str]:
    """All texts whose tokens `infill_prompt` may need, once each."""
    texts = [body.input_prefix, body.input_suffix, body.prompt or "", _PROJECT, _FILE, _SNIPPET]
    for chunk in body.input_extra or ():
        texts += [f"{chunk.filename or 'tmp'}\n", chunk.text]
    return list(dict.fromkeys(texts))


def infill_prompt(
    body: LlamaInfillRequest,
    tokens: GapTokens,
    ids_of: Mapping[str, list[int]],
    begin: Iterable[int] = (),
) -> list[int]:
    """The token ids of the prompt for a gap.

    Args:
        ids_of: token ids of each of `texts_of(body)`, without added special tokens.
        begin: tokens that the tokenizer puts before a text.
    """
    prompt = [] if tokens.repository is None else [tokens.repository, *ids_of[_PROJECT]]
    for chunk in body.input_extra or ():
        if tokens.file is None:
            prompt += ids_of[_SNIPPET]
        else:
            prompt += [tokens.file, *ids_of[f"{chunk.filename or 'tmp'}\n"]]
        prompt += ids_of[chunk.text]
    if tokens.file is not None:
        prompt += [tokens.file, *ids_of[_FILE]]
    prompt += [*begin, tokens.before, *ids_of[body.input_prefix], *ids_of[body.prompt or ""]]
    return [*prompt, tokens.behind, *ids_of[body.input_suffix], tokens.gap]


def _first(names: Iterable[str], id_of: IdOf) -> int | None:
    return next((found for name in names if (found := id_of(name)) is not None), None)
