"""Writes GGUF files by the `gguf` library."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np


def write_gguf(
    path: Path,
    arch: str,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    types: Mapping[str, Any] | None = None,
    **split: Any,
) -> Path:
    """Write a file and return its path, or the first part's.

    Args:
        tensors: quantised ones as bytes, with their types in `types`.
        split: the library's options for files in several parts.
    """
    writer = gguf.GGUFWriter(path, arch, **split)
    add = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    for name, value in metadata.items():
        if value is not None:
            add[type(value)](name, value)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor, raw_dtype=(types or {}).get(name))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(writer.format_shard_names(path)[0])
