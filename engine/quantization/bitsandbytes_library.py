"""The library bitsandbytes: run where another one needs it and nowhere else, without its notices.

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
    # Asks to install Hugging Face's distribution `kernels`, for one kernel of 4-bit layers on a
    # CPU. Our own package has that name, and bitsandbytes works without.
    "bitsandbytes.backends.cpu.ops",
    # Says at every call of an 8-bit layer that inputs become fp16. They do only to be rounded to 8
    # bits; outliers, those beyond fp16 among them, and results keep the activations' dtype.
    "bitsandbytes.autograd._functions",
)
"""Loggers, each of one message."""


class _Deferred(ModuleType):
    """A module whose code runs when something that it defines is first asked for.

    `importlib.util.LazyLoader` runs it for whatever is asked, such as the `__file__` that `inspect`
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
    """Let imports of bitsandbytes cost nothing from now on; does nothing where it is not
    installed, or was imported before."""
    for name in _NOTICES:
        logging.getLogger(name).setLevel(logging.ERROR)
    spec = None if _NAME in sys.modules else importlib.util.find_spec(_NAME)
    if spec is not None:
        module = importlib.util.module_from_spec(spec)
        module.__class__ = _Deferred
        sys.modules[_NAME] = module
