"""The models and formats that are measured, and their files."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Format:
    """A row of a table.

    Attributes:
        name: the name in the table and in the results.
        ending: end of the file's or folder's name, after the model's name and a dash.
        quantization: the value for `tandem serve --quantization`.
    """

    name: str
    ending: str
    quantization: str

    @property
    def is_made_at_load(self) -> bool:
        return self.ending == PLAIN and self.quantization != "none"


GGUF_TYPES = ("Q8_0", "Q6_K", "Q4_K_M", "Q4_0", "Q3_K_M", "Q2_K")
"""The types that llama.cpp's `llama-quantize` makes from the original."""
IMPORTANCE_TYPES = ("IQ4_XS", "IQ3_S", "IQ2_XS")
"""The types that it makes with weights for the errors, which `llama-imatrix` finds in a text."""
RESIDENT = ("BF16", "Q8_0", "Q4_K_M", "Q4_0")
"""The formats in the table of memory."""
PLAIN = "bf16.gguf"
FITTED = {"gptq-4": ("gptq", 4), "gptq-3": ("gptq", 3), "awq-4": ("awq", 4)}
"""The folders that GPTQModel makes, with method and bits."""
HQQ_BITS = (4, 3, 2)
"""The bits of the folders that hqq makes, which looks at no text."""
ORIGINAL = Format("BF16", PLAIN, "none")
FORMATS = (
    ORIGINAL,
    *(Format(name, f"{name.lower()}.gguf", "gguf") for name in (*GGUF_TYPES, *IMPORTANCE_TYPES)),
    Format("GPTQ, 4 bits", "gptq-4", "gptq"),
    Format("GPTQ, 3 bits", "gptq-3", "gptq"),
    Format("AWQ, 4 bits", "awq-4", "awq"),
    *(Format(f"HQQ, {bits} bits", f"hqq-{bits}", "hqq") for bits in HQQ_BITS),
    Format("`int8-weights`, at load", PLAIN, "int8-weights"),
    Format("`int8`, at load", PLAIN, "int8"),
    Format("`bnb-int8`, at load", PLAIN, "bnb-int8"),
    Format("`int4`, at load", PLAIN, "int4"),
    Format("`bnb-nf4`, at load", PLAIN, "bnb-nf4"),
)
WHOLE_BITS = {
    "Q8_0": 8,
    "Q4_K_M": 5,
    "Q4_0": 4,
    "IQ4_XS": 4,
    "GPTQ, 4 bits": 4,
    "AWQ, 4 bits": 4,
    "`bnb-nf4`, at load": 4,
    "HQQ, 4 bits": 4,
    "Q3_K_M": 4,
    "IQ3_S": 4,
    "Q2_K": 4,
    "IQ2_XS": 4,
    "GPTQ, 3 bits": 3,
    "HQQ, 3 bits": 3,
    "HQQ, 2 bits": 2,
}
"""The formats of the plot of losses, and the bits that most weights of the table's models have in
them, without scales: see the types in brackets in the table of formats."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model of the tables.

    Attributes:
        name: start of its files' names, and the name in the results.
        title: the name in the tables.
        ref: its reference (`engine.weights.source`); without one its files must be there.
        stored: the format in which its only available weights were stored.
    """

    name: str
    title: str
    ref: str | None = None
    stored: str | None = None

    def path(self, folder: Path, ending: str) -> Path:
        return folder / f"{self.name}-{ending}"

    def formats(self, folder: Path) -> Iterator[tuple[Format, Path]]:
        """The formats whose files exist, with their paths."""
        for one in FORMATS:
            if (path := self.path(folder, one.ending)).exists():
                yield one, path


MODELS = (
    Model("smollm2", "SmolLM2-135M-Instruct", "smollm2-135m-instruct", "Q4_1"),
    Model("gemma3", "Gemma-3-270M", "gemma-3-270m", "Q4_K_M"),
)
LARGE = Model("llama-1b", "a random Llama of 1 B parameters")
"""A model of which only the memory is measured; `loadtest.random_llama` writes its files."""
ALL_MODELS = (*MODELS, LARGE)
