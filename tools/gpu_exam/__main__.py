"""Runs the stages: `python -m tools.gpu_exam --out FOLDER`.

Each writes FOLDER/STAGE.json. Stages that are finished are skipped, and cases that were run are not
run again, so that the same command goes on where the last one stopped. broken.json lists what
failed; inputs.zip has the inputs of failing kernels.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tools.gpu_exam.child import FINISHED, OUT_OF_TIME, OUTSIDE_CASES, STOPPED
from tools.gpu_exam.stages import BROKEN, STAGES

LAST_CASE_S = 70
"""How long the last case may take after a stage's time is up."""
MOST_STARTS = 20
MAX_ZIP_BYTES = 12 << 20


def main(arguments: list[str] | None = None) -> int:
    """Exit code 1 if something failed, in this run or an earlier one."""
    options = _parser().parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.stage or STAGES:
        if name != BROKEN:
            _run(name, options.out, options.rehearse)
    failed = list(_failures(options.out))
    (options.out / f"{BROKEN}.json").write_text(json.dumps(failed, indent=1))
    for one in failed:
        print(f"FAILED {one['stage']}: {one['case']}: {one['error'].splitlines()[0][:200]}")
    return int(bool(failed))


def _run(name: str, out: Path, is_rehearsal: bool) -> None:
    """Run the rest of a stage."""
    stage = STAGES[name]
    path = out / f"{name}.json"
    if path.exists() and json.loads(path.read_text())["finished"]:
        print(f"{name}: finished before")
        return
    print(f"{name}: {stage.text}", flush=True)
    cores = len(os.sched_getaffinity(0))
    shards = 1 if is_rehearsal else max(1, min(stage.most_processes, cores // 2))
    ends_s = time.monotonic() + stage.seconds
    running = {
        shard: _start(name, out, shard, shards, ends_s, is_rehearsal) for shard in range(shards)
    }
    finished, starts = 0, shards
    while running:
        time.sleep(0.05)
        for shard, process in list(running.items()):
            if time.monotonic() > ends_s + LAST_CASE_S:
                process.kill()
            code = process.poll()
            if code is None:
                continue
            del running[shard]
            finished += code == FINISHED
            has_died = code not in (FINISHED, OUT_OF_TIME, STOPPED)
            if has_died and time.monotonic() < ends_s and starts < MOST_STARTS:
                starts += 1
                running[shard] = _start(name, out, shard, shards, ends_s, is_rehearsal)
    _merge(name, out, finished=finished == shards)


def _start(
    name: str, out: Path, shard: int, shards: int, ends_s: float, is_rehearsal: bool
) -> subprocess.Popen[bytes]:
    """Start one process of a stage, which leaves out what others have done."""
    seconds = str(round(ends_s - time.monotonic(), 1))
    how = ["rehearse"] if is_rehearsal else []
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tools.gpu_exam.child",
            name,
            out,
            str(shard),
            str(shards),
            seconds,
            *how,
        ],
        env=os.environ | ({"TRITON_INTERPRET": "1"} if is_rehearsal else {}),
    )


def _merge(name: str, out: Path, *, finished: bool) -> None:
    """Make one file of those that the processes wrote."""
    path = out / f"{name}.json"
    whole: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"cases": {}}
    whole["cases"].pop(OUTSIDE_CASES, None)
    for part in sorted(out.glob(f"{name}.*.json")):
        content = json.loads(part.read_text())
        whole |= content | {"cases": whole["cases"] | content["cases"]}
        part.unlink()
    for part in sorted(out.glob(f"{name}.*.zip")):
        _add_inputs(part, out / "inputs.zip")
        part.unlink()
    whole["finished"] = finished
    path.write_text(json.dumps(whole, indent=1))
    failed = sum(not facts["ok"] for facts in whole["cases"].values())
    rest = "" if finished else "; not finished: run it again"
    print(f"{name}: {len(whole['cases'])} cases, {failed} failed{rest}", flush=True)


def _add_inputs(part: Path, whole: Path) -> None:
    with zipfile.ZipFile(part) as source, zipfile.ZipFile(whole, "a", zipfile.ZIP_DEFLATED) as kept:
        for name in source.namelist():
            if whole.stat().st_size < MAX_ZIP_BYTES:
                kept.writestr(name, source.read(name))


def _failures(out: Path) -> Iterator[dict[str, Any]]:
    """All failing cases of all stages."""
    inputs = out / "inputs.zip"
    saved = zipfile.ZipFile(inputs).namelist() if inputs.exists() else []
    for name in STAGES:
        path = out / f"{name}.json"
        cases = json.loads(path.read_text())["cases"] if path.exists() else {}
        for case, facts in cases.items():
            if not facts["ok"]:
                kept = f"{case}.pt" if f"{case}.pt" in saved else None
                yield {"stage": name, "case": case, "inputs": kept} | facts


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.gpu_exam", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the folder for the results")
    parser.add_argument(
        "--stage", action="append", choices=[*STAGES, BROKEN], help="only this one; may be repeated"
    )
    parser.add_argument(
        "--rehearse", action="store_true", help="small cases on the CPU, with Triton's interpreter"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
