"""What a process writes that a command has started."""

import json
import subprocess
import sys
from pathlib import Path

import msgspec

from engine.contract.orders import QuantizingOrder
from engine.contract.settings import EngineConfig

SCRIPT = """
import os, sys
from pathlib import Path
from engine.contract.orders import QuantizingOrder
from engine.errors import InvalidParameter
from engine.processes.ordered_process import run_ordered

def carry_out(order, tell):
    print('{"problem": "of a library"}')
    os.write(1, b'{ not even JSON\\n')
    tell({"phase": "working"})
    os.system("echo '{ of a child'")
    if order.bits == 2:
        raise InvalidParameter("it is too small")
    assert isinstance(order.output, Path) and order.calibration is None
    return {"ä": 1, "output": str(order.output), "lora": order.config.lora}

class TestedOrder(QuantizingOrder):
    carried_out_by = "__main__:carry_out"

sys.exit(run_ordered(TestedOrder))
"""


def run(bits):
    config = EngineConfig(lora=("a=./a",))
    order = QuantizingOrder(model="m", method="int4", output=Path("o"), bits=bits, config=config)
    order = msgspec.json.encode(order, enc_hook=str)
    done = subprocess.run([sys.executable, "-c", SCRIPT, order], capture_output=True, timeout=60)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def test_only_messages_come_out():
    code, messages, errors = run(bits=4)
    report = {"ä": 1, "output": "o", "lora": ["a=./a"]}
    assert (code, messages) == (0, [{"phase": "working"}, {"report": report}])
    for printed in (b"of a library", b"not even JSON", b"of a child"):
        assert printed in errors
    assert run(bits=2)[:2] == (2, [{"phase": "working"}, {"problem": "it is too small"}])
