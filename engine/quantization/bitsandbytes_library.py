"""The library bitsandbytes, imported only when another library needs it, and without its notices.

Its formats are read and made without it (`bitsandbytes.py`). diffusers and transformers import it
with their models wherever it is installed, which takes a second or two.
"""

import importlib.util
import logging
import sys
from types import ModuleType
from typing import Any

_NAME = "bitsandbytes"
_NOTICES = (
    # It asks to install Hugging Face's distribution `kernels`, for one kernel of 4-bit layers on a
    # CPU. Our own package has that name, and bitsandbytes works without.
    "bitsandbytes.backends.cpu.ops",
    # It says at every call of an 8-bit layer that inputs become fp16. That is only for rounding to
    # 8 bits; outliers (including those beyond fp16) and results keep the activations' dtype.
    "bitsandbytes.autograd._functions",
)
"""Loggers that each write one message."""


class _Deferred(ModuleType):
    """A module whose code runs when something that it defines is first used.

    `importlib.util.LazyLoader` runs the code for any attribute, even `__file__`, which `inspect`
    reads of every module.
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__version__":
            raise AttributeError(name)
        assert self.__spec__ is not None and self.__spec__.loader is not None
        self.__class__ = ModuleType  # type: ignore[assignment]
        try:
            self.__spec__.loader.exec_module(self)
        except BaseException:
            self.__class__ = _Deferred
            raise
        return getattr(self, name)


def defer_bitsandbytes() -> None:
    """Make imports of bitsandbytes free from now on. Does nothing if it is not installed or already
    imported."""
    for name in _NOTICES:
        logging.getLogger(name).setLevel(logging.ERROR)
    spec = None if _NAME in sys.modules else importlib.util.find_spec(_NAME)
    if spec is not None:
        module = importlib.util.module_from_spec(spec)
        module.__class__ = _Deferred
        sys.modules[_NAME] = module
