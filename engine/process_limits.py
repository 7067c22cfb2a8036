"""What a process that works on foreign input does to itself first: limits that the kernel enforces.

Whatever takes more ends that process, and nobody else notices.
"""

import contextlib
import math
import resource
import signal
import sys
from pathlib import Path


def ignore_group_signals() -> None:
    """Terminals and service managers signal the whole process group. They mean the server, which
    drains before it ends this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def limit_memory(num_bytes: int) -> bool:
    """Bound the address space, and write no core files. False where the system has no such
    limit."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (num_bytes, num_bytes))
        # macOS takes the call and keeps no such limit.
        return sys.platform != "darwin"
    return False


def limit_more_memory(num_bytes: int) -> bool:
    """As `limit_memory`, in addition to what the process has by now."""
    space = address_space()
    return space > 0 and limit_memory(space + num_bytes)


def address_space() -> int:
    """Bytes that this process has now; 0 where the system does not say. Libraries reserve a lot on
    machines with many processors, and use none of it."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return 0
    return pages * resource.getpagesize()


def limit_time(cpu_s: int) -> None:
    """Allow so much processor time from now on; the kernel counts whole seconds since the start."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    used_s = math.ceil(usage.ru_utime + usage.ru_stime)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (used_s + cpu_s, hard))
