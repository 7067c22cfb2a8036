"""Stand-ins for packages that the engine imports and the exam does not need."""

import enum
import importlib.util
import sys
from collections import defaultdict
from types import ModuleType
from unittest.mock import MagicMock

GGML_TYPES = (
    "F32 F16 Q4_0 Q4_1 Q4_2 Q4_3 Q5_0 Q5_1 Q8_0 Q8_1 Q2_K Q3_K Q4_K Q5_K Q6_K Q8_K IQ2_XXS IQ2_XS "
    "IQ3_XXS IQ1_S IQ4_NL IQ3_S IQ2_S IQ4_XS I8 I16 I32 I64 F64 IQ1_M BF16 Q4_0_4_4 Q4_0_4_8 "
    "Q4_0_8_8 TQ1_0 TQ2_0 IQ4_NL_4_4 IQ4_NL_4_8 IQ4_NL_8_8 MXFP4"
)
"""The names of GGUF's types by their numbers."""


def stand_in() -> list[str]:
    """Replace those that are missing. Returns their names.

    Logs are then lost, and structures and GGUF files cannot be used.
    """
    makers = dict.fromkeys(("structlog", "llguidance", "msgspec"), _anything) | {"gguf": _gguf}
    missing = [name for name in makers if importlib.util.find_spec(name) is None]
    for name in missing:
        sys.modules[name] = makers[name](name)
    if "gguf" in missing:
        sys.modules["gguf.quants"] = _anything("gguf.quants")
    return missing


def _anything(name: str) -> ModuleType:
    """Make a module that has every name."""
    module = ModuleType(name)
    module.__getattr__ = lambda attribute: MagicMock(name=attribute)  # type: ignore[method-assign]
    return module


def _gguf(name: str) -> ModuleType:
    module = _anything(name)
    types = enum.IntEnum("GGMLQuantizationType", GGML_TYPES, start=0)  # type: ignore[misc]
    vars(module).update(GGMLQuantizationType=types, GGML_QUANT_SIZES=defaultdict(lambda: (1, 2)))
    return module
