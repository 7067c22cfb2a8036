"""One process of one stage: `python -m tools.gpu_exam.child STAGE OUT SHARD OF SECONDS [rehearse]`.

A process of its own, because a kernel that writes where it must not ends all work of its process on
the GPU.
"""

import json
import sys
import time
from pathlib import Path

from tools.gpu_exam.absent import stand_in
from tools.gpu_exam.stages import STAGES

FINISHED, OUT_OF_TIME, POISONED, STOPPED = 0, 3, 4, 5
OUTSIDE_CASES = "between the cases"
"""The name of an error that is no case's."""


def main(arguments: list[str]) -> int:
    """Run the cases that no earlier process has run. Returns one of the codes above."""
    name, out, shard, num_shards, seconds, *how = arguments
    ends_s = time.monotonic() + float(seconds)
    missing = stand_in()
    import structlog
    import torch

    from kernels import machine
    from tools.gpu_exam.place import Place
    from tools.gpu_exam.record import OutOfTime, Poisoned, Record, failure

    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    # One thread per process is enough beside a GPU, and as much as a rehearsal may take.
    torch.set_num_threads(1)
    record = Record(
        Path(out, f"{name}.{shard}.json"), done_before(Path(out, f"{name}.json")), ends_s
    )
    record.write()
    code = FINISHED
    try:
        STAGES[name].function()(record, Place("rehearse" in how), int(shard), int(num_shards))
    except OutOfTime:
        code = OUT_OF_TIME
    except Poisoned:
        code = POISONED
    except Exception as error:
        record.cases[OUTSIDE_CASES] = failure(error)
        code = STOPPED
    record.write(machine=machine.facts(), missing=missing, finished=code == FINISHED)
    return code


def done_before(path: Path) -> set[str]:
    """The cases of earlier runs."""
    return set(json.loads(path.read_text())["cases"]) if path.exists() else set()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
