"""The C++ operations, ready before a model needs them."""

from engine.host import Host
from engine.types import Phase
from kernels import native


def build_operations(host: Host) -> None:
    """Have them ready, which takes a while once per machine."""
    if not native.is_built():
        host.report(Phase.LOADING, 0.0, "compiling the CPU operations, once on this machine")
    native.library()
