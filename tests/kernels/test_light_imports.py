"""What computes must run without the wire libraries, on any supported torch."""

from tests.helpers.plain_python import printed

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
    printed("-c", source)
