"""GGUF files of fewer bits, made from GGUF files by llama.cpp's `llama-quantize` if it is on the
PATH, otherwise, for simple types, by the gguf package.

Sources: https://github.com/ggml-org/llama.cpp/tree/master/tools/quantize,
https://github.com/ggml-org/llama.cpp/tree/master/gguf-py
"""

import math
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from engine.contract.host import Tell
from engine.errors import ModelLoadError, UnsupportedFeature
from engine.files.gguf_part_names import part_names
from engine.weights.source import Checkpoint

TOOL = "llama-quantize"
SIMPLE = ("Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "BF16", "F16")
"""The types that the gguf package can make."""
_PLAIN = (
    gguf.GGMLQuantizationType.F32,
    gguf.GGMLQuantizationType.F16,
    gguf.GGMLQuantizationType.BF16,
)
_TENSOR_LINE = re.compile(r"\[\s*(\d+)/\s*(\d+)\]")
_FILE_TYPE = "general.file_type"


def gguf_types() -> list[str]:
    """Return the names of the types that a file may be made in."""
    names = [name.removeprefix("MOSTLY_") for name in gguf.LlamaFileType.__members__]
    return [name for name in names if re.fullmatch(r"I?Q\d\w*|B?F16", name)]


def write_gguf(checkpoint: Checkpoint, file: Path, tell: Tell, quant_type: str) -> dict[str, Any]:
    """Make `file` from another GGUF file. A source with few bits, such as the built-in models,
    loses more than one with 16; the report says so.

    Raises:
        UnsupportedFeature: the checkpoint is not a GGUF file, or the tool for this type is missing.
        ModelLoadError: `llama-quantize` fails.
    """
    if checkpoint.layout != "gguf":
        raise UnsupportedFeature(
            f"{checkpoint.name} is not a GGUF file; convert it with llama.cpp's "
            f"convert_hf_to_gguf.py and give the result"
        )
    tool = shutil.which(TOOL)
    few_bits = {"few_bits_before": found} if (found := _packed_types(checkpoint.path)) else {}
    if tool is not None:
        _run_tool(tool, checkpoint.path, file, tell, quant_type)
        return {"made_by": TOOL, **few_bits}
    if quant_type not in SIMPLE:
        raise UnsupportedFeature(
            f"{quant_type} is made by llama.cpp's {TOOL}, which is not on the PATH; install "
            f"llama.cpp, or choose one of {', '.join(f'gguf-{name.lower()}' for name in SIMPLE)}"
        )
    if len(part_names(checkpoint.path.name)) > 1:
        raise UnsupportedFeature(
            f"{checkpoint.name} has several parts, which only {TOOL} can read; install llama.cpp"
        )
    _rewrite(checkpoint.path, file, tell, quant_type)
    return {"made_by": "gguf", **few_bits}


def _packed_types(path: Path) -> list[str]:
    """Return the types of the tensors that have fewer than 16 bits."""
    types = {tensor.tensor_type for tensor in gguf.GGUFReader(path).tensors}
    return sorted(one.name for one in types if one not in _PLAIN)


def _run_tool(tool: str, source: Path, file: Path, tell: Tell, quant_type: str) -> None:
    last = ""
    with subprocess.Popen(
        [tool, "--allow-requantize", str(source), str(file), quant_type],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            last = line.strip() or last
            place = _TENSOR_LINE.search(line)
            if place is not None:
                done, count = map(int, place.groups())
                detail = f"tensor {done}/{count}"
                tell({"phase": "quantising", "progress": done / max(1, count), "detail": detail})
    if process.returncode != 0:
        raise ModelLoadError(f"{TOOL} ended with exit code {process.returncode}: {last}")


def _rewrite(source: Path, file: Path, tell: Tell, quant_type: str) -> None:
    """Copy the file with matrices converted to the wanted type where their rows are whole
    blocks."""
    reader = gguf.GGUFReader(source)
    wanted = gguf.GGMLQuantizationType[quant_type]
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(file, architecture)
    for name, entry in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", _FILE_TYPE):
            continue
        is_array = entry.types[0] is gguf.GGUFValueType.ARRAY
        inner = entry.types[-1] if is_array else None
        writer.add_key_value(name, entry.contents(), entry.types[0], sub_type=inner)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{quant_type}"])
    kept = [_type_of(tensor, wanted) for tensor in reader.tensors]
    for tensor, made in zip(reader.tensors, kept, strict=True):
        shape = [int(size) for size in reversed(tensor.shape)]
        block, num_bytes = gguf.GGML_QUANT_SIZES[made]
        size = math.prod(shape) // block * num_bytes
        writer.add_tensor_info(tensor.name, shape, np.dtype(np.float32), size, made)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for done, (tensor, made) in enumerate(zip(reader.tensors, kept, strict=True), 1):
        data = tensor.data
        if made is not tensor.tensor_type:
            data = gguf.quantize(gguf.dequantize(data, tensor.tensor_type), made)
        writer.write_tensor_data(data)
        detail = f"tensor {done}/{len(kept)}"
        tell({"phase": "quantising", "progress": done / len(kept), "detail": detail})
    writer.close()


def _type_of(tensor: gguf.ReaderTensor, wanted: gguf.GGMLQuantizationType) -> Any:
    """Return the type of a tensor in the new file; vectors and odd rows keep theirs."""
    block, _ = gguf.GGML_QUANT_SIZES[wanted]
    is_matrix = len(tensor.shape) > 1 and int(tensor.shape[0]) % block == 0
    return wanted if is_matrix else tensor.tensor_type
