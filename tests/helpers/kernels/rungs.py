"""Whether instruction sets can be chosen here."""

import platform

from kernels import isa

HAS_RUNGS = platform.machine() in ("x86_64", "AMD64")
"""Whether this machine's compilers know the names of `X86_RUNGS`."""
X86_RUNGS = [name for name in isa.RUNGS if name.startswith("x86-64")]
