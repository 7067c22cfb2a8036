"""Writes a Llama of 1 B parameters with random weights as GGUF files: the shape decides the speed.

    python -m loadtest.random_llama FOLDER --tokenizer smollm2-q4_1.gguf --quantize llama-quantize

The shape is that of Llama 3.2 1B: width 2048, 16 layers, 32 query heads and 8 of keys and values,
8192 inside the MLP, one matrix as both embedding and output layer. The tokenizer is copied from
another file, and sets the size of the vocabulary. `llama-1b-bf16.gguf` has the same bytes for the
same seed; llama.cpp's program, given as `--quantize`, makes `llama-1b-q4_0.gguf`, `-q4_k_m` and
`-q8_0` from it.

Weights are normal, and scaled so that activations keep their size from layer to layer. Logits have
a deviation of 3, so that rounding does not decide the text, which is of course meaningless.
"""

import argparse
import math
import os
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

QUANTIZED = ("Q4_0", "Q4_K_M", "Q8_0")

CONTEXT = 8192
LOGIT_DEVIATION = 3.0
_TOKENIZER_PREFIX = "tokenizer."


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaShape:
    """Sizes with the names of Hugging Face's config.json; the vocabulary is the tokenizer's."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


SHAPES = {
    "1b": LlamaShape(
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
    ),
    "4b": LlamaShape(
        hidden_size=3072,
        intermediate_size=9216,
        num_hidden_layers=32,
        num_attention_heads=24,
        num_key_value_heads=8,
    ),
    "8b": LlamaShape(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
    ),
    "tiny": LlamaShape(
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    ),
}


@dataclass(frozen=True, slots=True)
class RandomTensor:
    """Normal numbers, or ones if `deviation` is None. `shape` is that of the array in memory."""

    name: str
    shape: tuple[int, ...]
    deviation: float | None
    in_fp32: bool = False
    """Whether normal numbers are stored in fp32; ones always are."""

    @property
    def is_bf16(self) -> bool:
        return self.deviation is not None and not self.in_fp32


def llama_tensors(shape: LlamaShape, vocab_size: int) -> Iterator[RandomTensor]:
    """All tensors of the file. A matrix is `[outputs, inputs]`."""
    width, inside = shape.hidden_size, shape.intermediate_size
    kv_width = shape.num_key_value_heads * shape.head_dim
    # The more layers, the less each one adds to the residual (GPT-2's rule).
    added = 1 / math.sqrt(2 * shape.num_hidden_layers)
    # The last norm's output has size 1 in each of `width` places.
    yield RandomTensor("token_embd.weight", (vocab_size, width), LOGIT_DEVIATION / math.sqrt(width))
    for i in range(shape.num_hidden_layers):
        matrices = {
            "attn_q": (width, width, 1.0),
            "attn_k": (kv_width, width, 1.0),
            "attn_v": (kv_width, width, 1.0),
            "attn_output": (width, width, added),
            "ffn_gate": (inside, width, 1.0),
            "ffn_up": (inside, width, 1.0),
            "ffn_down": (width, inside, added),
        }
        yield RandomTensor(f"blk.{i}.attn_norm.weight", (width,), None)
        yield RandomTensor(f"blk.{i}.ffn_norm.weight", (width,), None)
        for name, (outputs, inputs, gain) in matrices.items():
            yield RandomTensor(
                f"blk.{i}.{name}.weight", (outputs, inputs), gain / math.sqrt(inputs)
            )
    yield RandomTensor("output_norm.weight", (width,), None)


def write_random_llama(path: Path, size: str, tokenizer: Path, *, seed: int = 0) -> None:
    """Write a bf16 GGUF file, one tensor in memory at a time. The same seed gives the same bytes.

    `tokenizer` is a GGUF file whose tokenizer is copied. Raises ValueError for a size that is not
    in `SHAPES` and for a file without a tokenizer.
    """
    if size not in SHAPES:
        raise ValueError(f"there is no size {size!r}; there are: {', '.join(SHAPES)}")
    shape = SHAPES[size]

    def describe(writer: Any, vocab_size: int) -> Iterator[RandomTensor]:
        _add_sizes(writer, shape, vocab_size, f"random-llama-{size}")
        return llama_tensors(shape, vocab_size)

    write_random_model(path, "llama", describe, tokenizer, seed=seed)


def write_random_model(
    path: Path,
    architecture: str,
    describe: Callable[[Any, int], Iterable[RandomTensor]],
    tokenizer: Path,
    *,
    seed: int,
) -> None:
    """Write a bf16 GGUF file, as `write_random_llama` does.

    `describe` receives the `GGUFWriter` and the size of the vocabulary, adds the model's keys and
    returns its tensors.
    """
    import numpy as np
    from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, LlamaFileType
    from gguf.quants import quantize

    fields = {
        name: field
        for name, field in GGUFReader(tokenizer).fields.items()
        if name.startswith(_TOKENIZER_PREFIX)
    }
    if "tokenizer.ggml.tokens" not in fields:
        raise ValueError(f"{tokenizer.name} has no tokenizer; name a GGUF file of a language model")
    vocab_size = len(fields["tokenizer.ggml.tokens"].data)

    part = path.with_name(path.name + ".part")
    writer = GGUFWriter(part, architecture)
    tensors = list(describe(writer, vocab_size))
    writer.add_file_type(LlamaFileType.MOSTLY_BF16)
    for name, field in fields.items():
        sub_type = field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(name, field.contents(), field.types[0], sub_type=sub_type)
    for tensor in tensors:
        kind = GGMLQuantizationType.BF16 if tensor.is_bf16 else GGMLQuantizationType.F32
        num_bytes = math.prod(tensor.shape) * (2 if tensor.is_bf16 else 4)
        float32 = np.dtype(np.float32)
        writer.add_tensor_info(tensor.name, tensor.shape, float32, num_bytes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    rng = np.random.default_rng(seed)
    for tensor in tensors:
        if tensor.deviation is None:
            writer.write_tensor_data(np.ones(tensor.shape, np.float32))
            continue
        values = rng.standard_normal(tensor.shape, np.float32)
        values *= np.float32(tensor.deviation)
        writer.write_tensor_data(
            quantize(values, GGMLQuantizationType.BF16) if tensor.is_bf16 else values
        )
    writer.close()
    part.replace(path)


def _add_sizes(writer: Any, shape: LlamaShape, vocab_size: int, name: str) -> None:
    writer.add_name(name)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_block_count(shape.num_hidden_layers)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(shape.num_attention_heads)
    writer.add_head_count_kv(shape.num_key_value_heads)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(500_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocab_size)


def quantized(source: Path, to: Path, kind: str, program: Path) -> None:
    """Make `to` from `source` with llama.cpp's `llama-quantize`, whose libraries lie beside it.

    Raises RuntimeError with the end of its output when it fails.
    """
    part = to.with_name(to.name + ".part")
    done = subprocess.run(
        [program, source, part, kind],
        env=os.environ | {"LD_LIBRARY_PATH": str(program.parent)},
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode:
        raise RuntimeError(f"{program.name} could not make {kind}: {done.stderr[-1000:].strip()}")
    part.replace(to)


def write_files(
    program: str, sizes: Iterable[str], kinds: Iterable[str], write: Callable[..., None]
) -> None:
    """Read the command line, and write a bf16 file and those of `kinds` that are made from it."""
    parser = argparse.ArgumentParser(prog=f"python -m loadtest.random_{program}")
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--tokenizer", type=Path, required=True, help="a GGUF file whose tokenizer is copied"
    )
    parser.add_argument("--size", choices=list(sizes), default=next(iter(sizes)))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quantize", type=Path, help="llama.cpp's llama-quantize")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    source = options.folder / f"{program}-{options.size}-bf16.gguf"
    write(source, options.size, options.tokenizer, seed=options.seed)
    for kind in kinds if options.quantize else ():
        to = source.with_name(f"{program}-{options.size}-{kind.lower()}.gguf")
        quantized(source, to, kind, options.quantize)


if __name__ == "__main__":
    write_files("llama", SHAPES, QUANTIZED, write_random_llama)
