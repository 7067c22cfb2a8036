# ruff: noqa: RUF001
r"""The rules by which byte-level BPE cuts text into words, by the name in `tokenizer.ggml.pre`.

The cuts are those that llama.cpp makes for the name, with the regular expressions of the models'
own tokenizer.json. Tests check every rule against ids from llama.cpp. An unknown name is refused,
because a wrong cut gives plausible ids and a worse model.
"""

from dataclasses import dataclass

from tokenizers import Regex
from tokenizers.pre_tokenizers import ByteLevel, PreTokenizer, Sequence, Split

from engine.errors import UnsupportedArchitecture

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_CASED_WORD = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%(end)s"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%(end)s"
)
_PUNCTUATION_RUN = r" ?[^\s\p{L}\p{N}]+"

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_DIGIT = r"\p{N}"
_LLAMA3 = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}"
    rf"|{_PUNCTUATION_RUN}[\r\n]*|{_SPACES}"
)
_QWEN2 = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_PUNCTUATION_RUN}[\r\n]*|{_SPACES}"
)
_QWEN35 = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
)
_TEKKEN = rf"{_CASED_WORD % {'end': ''}}|\p{{N}}|{_PUNCTUATION_RUN}[\r\n/]*|{_SPACES}"
_GPT4O = (
    rf"{_CASED_WORD % {'end': _CONTRACTIONS + '?'}}|\p{{N}}{{1,3}}"
    rf"|{_PUNCTUATION_RUN}[\r\n/]*|{_SPACES}"
)
_THREE_DIGITS = "[0-9][0-9][0-9]"
_CASED_LETTERS = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚ"
    "Ḁ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄ"
    "Ⰰ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)
_EAST_ASIAN = "[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+"
_YOUTU = (
    rf"{_CASED_WORD % {'end': _CONTRACTIONS + '?'}}|\p{{N}}|{_PUNCTUATION_RUN}[\r\n/]*|{_SPACES}"
)
_DEEPSEEK3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
    r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    rf"|{_SPACES}"
)


@dataclass(frozen=True, slots=True)
class PreTokenizerRule:
    """Cuts, applied one after the other, and the other settings that llama.cpp ties to the name."""

    cuts: tuple[str, ...]
    ignore_merges: bool = False
    """Whether a word that is in the vocabulary is one token regardless of the merges."""
    adds_bos: bool = False
    """Whether a begin-of-text token is added, unless the file states it."""

    def create(self) -> PreTokenizer:
        cuts = [Split(Regex(cut), behavior="isolated") for cut in self.cuts]
        return Sequence([*cuts, ByteLevel(add_prefix_space=False, use_regex=False)])


_RULES = {
    PreTokenizerRule((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", _THREE_DIGITS)): ["default"],
    PreTokenizerRule((_GPT2,)): [
        "gpt-2", "phi-2", "olmo", "mpt", "jais", "trillion", "granite-docling", "exaone4",
        "gigachat", "a.x-4.0", "mellum",
    ],
    PreTokenizerRule((_DIGIT, _GPT2)): [
        "smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b",
    ],
    PreTokenizerRule((_LLAMA3,), ignore_merges=True, adds_bos=True): [
        "llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2",
    ],
    PreTokenizerRule((_LLAMA3,)): ["dbrx", "smaug-bpe", "chatglm-bpe"],
    PreTokenizerRule((_LLAMA3,), ignore_merges=True): ["glm4"],
    PreTokenizerRule((_QWEN2,)): [
        "qwen2", "deepseek-r1-qwen", "megrez", "stablelm2", "hunyuan", "kormo", "grok-2",
    ],
    PreTokenizerRule((_QWEN35,)): ["qwen35"],
    PreTokenizerRule((_TEKKEN,), ignore_merges=True, adds_bos=True): ["tekken"],
    PreTokenizerRule((_GPT4O,)): ["gpt-4o", "llama4", "kanana2"],
    PreTokenizerRule((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, _THREE_DIGITS)): ["falcon"],
    PreTokenizerRule(
        (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", _DIGIT)
    ): ["deepseek-coder"],
    PreTokenizerRule(
        (
            r"[\r\n]", rf"\s?[{_CASED_LETTERS}]+", r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$",
            "[一-龥ࠀ-一가-퟿]+", r"\p{N}+",
        )
    ): ["deepseek-llm"],
    PreTokenizerRule((r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", _DEEPSEEK3)): ["deepseek-v3"],
    PreTokenizerRule((_EAST_ASIAN, _YOUTU), ignore_merges=True): ["youtu"],
}  # fmt: skip
_BY_NAME = {name: rule for rule, names in _RULES.items() for name in names}
KNOWN_CUTS = frozenset(cut for rule in _RULES for cut in rule.cuts)
"""All regular expressions of the rules."""


def pre_tokenizer_rule(name: str) -> PreTokenizerRule:
    """Return the rule of a name.

    Raises:
        UnsupportedArchitecture: no rule has this name.
    """
    rule = _BY_NAME.get(name)
    if rule is None:
        raise UnsupportedArchitecture(
            f"the GGUF file's pre-tokenizer is {name[:80]!r}; it must be one of "
            f"{', '.join(_BY_NAME)}; serve the model from a folder with its tokenizer.json"
        )
    return rule
