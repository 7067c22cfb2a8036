"""Limits, enforced by the kernel, that a process sets on itself before it works on untrusted input.

Exceeding a limit ends that process, and no other is affected.
"""

import contextlib
import math
import resource
import signal
import sys
from pathlib import Path


def ignore_group_signals() -> None:
    """Ignore signals to the whole process group, which terminals and service managers send. They
    are meant for the server, which drains before it ends this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def limit_memory(num_bytes: int) -> bool:
    """Limit the address space, and write no core files. Returns False if the system has no such
    limit."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (num_bytes, num_bytes))
        # macOS accepts the call and does not enforce the limit.
        return sys.platform != "darwin"
    return False


def limit_more_memory(num_bytes: int) -> bool:
    """Limit the address space like `limit_memory`, but in addition to what the process has now."""
    space = address_space()
    return space > 0 and limit_memory(space + num_bytes)


def address_space() -> int:
    """The bytes of this process's address space; 0 if the system does not say. Libraries reserve
    much of it on machines with many processors, without using it."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return 0
    return pages * resource.getpagesize()


def limit_time(cpu_s: int) -> None:
    """Allow this much more processor time; the kernel counts whole seconds since the start."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    used_s = math.ceil(usage.ru_utime + usage.ru_stime)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (used_s + cpu_s, hard))
