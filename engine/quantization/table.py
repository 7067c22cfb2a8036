"""All formats by their names in the settings. A new one is a row here and a module.

Knows no tensors: configuration is resolved where there is no torch.
"""

from dataclasses import dataclass
from typing import Literal

Quantization = Literal[
    "auto",
    "none",
    "gguf",
    "gguf-int8",
    "gptq",
    "awq",
    "bitsandbytes",
    "compressed-tensors",
    "fp8",
    "int8",
    "int8-weights",
    "int4",
    "bnb-nf4",
    "bnb-fp4",
    "bnb-int8",
]
"""`--quantization`, of text models."""
ImageQuantization = Literal["none", "int8-weights", "int4", "bnb-nf4", "bnb-fp4", "bnb-int8"]
"""`--image-quantization`: formats made of plain weights. Those that a file has need no setting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatFacts:
    """What can be said of a format without loading it."""

    target: str
    """`module:class` of an `engine.quantization.format.StoredFormat` or `LoadFormat`, imported when
    it is asked for."""
    stored_as: str | None = None
    """Name of the format that a checkpoint must have; None: made of plain weights at load."""
    described: str = ""
    """Of one that a checkpoint has: `the model has no weights <described>`."""
    kept_by_auto_on: tuple[Literal["cpu", "cuda"], ...] = ()
    """Where a checkpoint's weights stay in it unless something else is asked for."""
    cpu_only: bool = False
    needs_native: bool = False
    """On a CPU it needs the C++ operations; `auto` keeps it on a GPU only where Triton is."""


FORMATS = {
    "gguf": FormatFacts(
        target="engine.quantization.gguf:GgufFormat",
        stored_as="gguf",
        described="packed as in GGUF files",
        kept_by_auto_on=("cpu", "cuda"),
        needs_native=True,
    ),
    "gguf-int8": FormatFacts(
        target="engine.quantization.gguf:GgufInt8Format",
        stored_as="gguf",
        described="packed as in GGUF files",
        cpu_only=True,
        needs_native=True,
    ),
    "gptq": FormatFacts(
        target="engine.quantization.gptq:GptqFormat",
        stored_as="gptq",
        described="as GPTQ has them",
        kept_by_auto_on=("cpu", "cuda"),
    ),
    "awq": FormatFacts(
        target="engine.quantization.awq:AwqFormat",
        stored_as="awq",
        described="as AWQ has them",
        kept_by_auto_on=("cpu", "cuda"),
    ),
    "bitsandbytes": FormatFacts(
        target="engine.quantization.bitsandbytes:BitsandbytesFormat",
        stored_as="bitsandbytes",
        described="as bitsandbytes has them",
        kept_by_auto_on=("cpu", "cuda"),
    ),
    "compressed-tensors": FormatFacts(
        target="engine.quantization.compressed_tensors:CompressedTensorsFormat",
        stored_as="compressed-tensors",
        described="as compressed-tensors has them",
        kept_by_auto_on=("cpu", "cuda"),
    ),
    "fp8": FormatFacts(
        target="engine.quantization.fp8:Fp8Format",
        stored_as="fp8",
        described="in 8-bit floats, and none are made of plain ones: take int8-weights instead",
        kept_by_auto_on=("cpu", "cuda"),
    ),
    "int8": FormatFacts(
        target="engine.quantization.int8:Int8Format", cpu_only=True, needs_native=True
    ),
    "int8-weights": FormatFacts(
        target="engine.quantization.rounded:Int8WeightsFormat", needs_native=True
    ),
    "int4": FormatFacts(target="engine.quantization.rounded:Int4Format", needs_native=True),
    "bnb-nf4": FormatFacts(target="engine.quantization.bitsandbytes:Nf4Format"),
    "bnb-fp4": FormatFacts(target="engine.quantization.bitsandbytes:Fp4Format"),
    "bnb-int8": FormatFacts(target="engine.quantization.bitsandbytes:LlmInt8Format"),
}
