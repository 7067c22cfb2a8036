"""The processor, and which of its instructions the C++ operations use."""

import os
import platform

from engine.processes.own_packages import module_alone
from server.doctor.finding import Finding


def processor(cpu_isa: str) -> Finding:
    isa = module_alone("kernels/isa.py")
    cores = len(os.sched_getaffinity(0))
    name = isa.cpuinfo().get("model name", platform.machine())
    machine = f"{name}, {cores} core{'s' if cores > 1 else ''}"
    lacking = isa.missing(cpu_isa)
    if lacking:
        return Finding(
            "processor",
            "broken",
            f"{machine}, without {', '.join(lacking)}, which {cpu_isa} needs",
            "tandem serve --cpu-isa auto",
        )
    rungs = [name for name in isa.RUNGS if not isa.missing(name)]
    if not rungs:
        lacking = isa.missing(next(iter(isa.RUNGS)))
        return Finding(
            "processor",
            "limited",
            f"{machine}, without {', '.join(lacking)}, so models run slowly on it",
            "use a machine whose processor has AVX2 (Intel since 2013, AMD since 2015)",
        )
    chosen = f"operations for {rungs[-1]}, the best it supports"
    if cpu_isa in isa.RUNGS:
        best = "" if cpu_isa == rungs[-1] else f"; its best is {rungs[-1]}"
        chosen = f"operations for {cpu_isa}, as asked{best}"
    return Finding("processor", "ok", f"{machine}, {chosen}")
