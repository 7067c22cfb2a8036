"""What computes must run without the wire libraries, on any supported torch."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOREIGN = ("fastapi", "starlette", "uvicorn", "diffusers", "zmq", "msgspec", "pydantic")


def test_computing_imports_no_wire_library():
    source = f"""
import sys
for name in {FOREIGN}:
    sys.modules[name] = None  # importing it raises ImportError
import engine.llm.executor
import kernels
from engine.models.registry import families
families()
"""
    done = subprocess.run(
        [sys.executable, "-c", source],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
