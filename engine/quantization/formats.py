"""All formats by their names in the settings. A new format is a row here and a module.

This module does not use tensors, because configuration is resolved where there is no torch.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatFacts:
    """The facts about a format that are known without loading it."""

    target: str
    """`module:class` of an `engine.quantization.format.StoredFormat` or `LoadFormat`, imported when
    it is needed."""
    stored_as: str | None = None
    """The name of the format that a checkpoint must have; None if it is made from plain weights at
    load."""
    described: str = ""
    """The end of the message for checkpoints without this format: `the model has no weights
    <described>`."""
    kept_by_auto_on: tuple[Literal["cpu", "cuda"], ...] = ()
    """The devices where a checkpoint's weights stay in this format by default."""
    cpu_only: bool = False
    needs_native: bool = False
    """Whether the format needs the C++ operations on a CPU; `auto` keeps it on a GPU only with
    Triton."""


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
        described="quantised by GPTQ",
        kept_by_auto_on=("cpu", "cuda"),
    ),
    "awq": FormatFacts(
        target="engine.quantization.awq:AwqFormat",
        stored_as="awq",
        described="quantised by AWQ",
        kept_by_auto_on=("cpu", "cuda"),
    ),
    "bitsandbytes": FormatFacts(
        target="engine.quantization.bitsandbytes:BitsandbytesFormat",
        stored_as="bitsandbytes",
        described="quantised by bitsandbytes",
        kept_by_auto_on=("cpu", "cuda"),
    ),
    "compressed-tensors": FormatFacts(
        target="engine.quantization.compressed_tensors:CompressedTensorsFormat",
        stored_as="compressed-tensors",
        described="in the format compressed-tensors",
        kept_by_auto_on=("cpu", "cuda"),
    ),
    "fp8": FormatFacts(
        target="engine.quantization.fp8:Fp8Format",
        stored_as="fp8",
        described="in 8-bit floats, and Tandem does not make them; use int8-weights",
        kept_by_auto_on=("cpu", "cuda"),
    ),
    "mxfp4": FormatFacts(
        target="engine.quantization.mxfp4:Mxfp4Format",
        stored_as="mxfp4",
        described="in MXFP4",
        kept_by_auto_on=("cpu",),
        cpu_only=True,
        needs_native=True,
    ),
    "auto-round": FormatFacts(
        target="engine.quantization.auto_round:AutoRoundFormat",
        stored_as="auto-round",
        described="quantised by auto-round",
        kept_by_auto_on=("cpu", "cuda"),
    ),
    "torchao": FormatFacts(
        target="engine.quantization.torchao:TorchaoFormat",
        stored_as="torchao",
        described="quantised by torchao",
        kept_by_auto_on=("cpu", "cuda"),
    ),
    "quanto": FormatFacts(
        target="engine.quantization.quanto:QuantoFormat",
        stored_as="quanto",
        described="quantised by quanto",
        kept_by_auto_on=("cpu", "cuda"),
    ),
    "hqq": FormatFacts(
        target="engine.quantization.hqq:HqqFormat",
        stored_as="hqq",
        described="quantised by HQQ",
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
