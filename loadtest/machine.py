"""Facts about the machine and the checkout that belong to a result."""

import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_CPU_FLAGS = (
    *("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_bf16", "amx_int8"),
)


def machine_facts() -> dict[str, Any]:
    """CPU, memory, kernel and Python; nothing that names the machine or its owner."""
    cpu = _cpu_info()
    flags = cpu.get("flags", "").split()
    return {
        "cpu": cpu.get("model name") or platform.processor() or platform.machine(),
        "cpu_family_model": f"{cpu.get('cpu family', '?')}/{cpu.get('model', '?')}",
        "cpu_flags": " ".join(flag for flag in _CPU_FLAGS if flag in flags),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def _cpu_info() -> dict[str, str]:
    """The first processor of /proc/cpuinfo."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _commit() -> dict[str, Any]:
    """The checkout's commit, and whether tracked files differ from it; None outside of git."""
    head = _git("rev-parse", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no")
    return {"commit": head, "uncommitted_changes": bool(changed) if head else None}


def _git(*arguments: str) -> str | None:
    root = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def provenance(label: str, module: str = "loadtest") -> dict[str, Any]:
    """The facts needed to repeat a run: command, time, commit and machine."""
    return {
        "label": label,
        "command": command_line(sys.argv[1:], module),
        "started_at": _now(),
        **_commit(),
        "machine": machine_facts(),
    }


def command_line(arguments: list[str], module: str = "loadtest") -> str:
    """The command as typed, without the value of a key."""
    shown = list(arguments)
    for i, argument in enumerate(shown):
        if argument == "--api-key" and i + 1 < len(shown):
            shown[i + 1] = "***"
        elif argument.startswith("--api-key="):
            shown[i] = "--api-key=***"
    return shlex.join(["python", "-m", module, *shown])
