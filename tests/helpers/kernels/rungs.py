"""Whether instruction sets can be chosen here."""

import platform

HAS_RUNGS = platform.machine() in ("x86_64", "AMD64")
"""Whether this machine's compilers know the names of `kernels.isa.RUNGS`."""
