"""What a process writes that a command has started."""

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from engine.contract.orders import QuantizingOrder
from engine.contract.settings import EngineConfig
from tests.helpers.worker.calls import is_alive, until

SCRIPT = """
import os, sys, time
from pathlib import Path
from engine.contract.orders import QuantizingOrder
from engine.errors import InvalidParameter
from engine.processes.ordered_process import run_ordered

def carry_out(order, tell):
    print('{"problem": "of a library"}')
    os.write(1, b'{ not even JSON\\n')
    tell({"phase": "working"})
    os.system("echo '{ of a child'")
    if order.bits == 3:
        Path(order.model).write_text(str(os.getpid()))
        time.sleep(600)
    if order.bits == 2:
        raise InvalidParameter("it is too small")
    assert isinstance(order.output, Path) and order.calibration is None
    return {"ä": 1, "output": str(order.output), "lora": order.config.lora}

class TestedOrder(QuantizingOrder):
    carried_out_by = "__main__:carry_out"

sys.exit(run_ordered(TestedOrder))
"""


def command(bits, model="m"):
    config = EngineConfig(lora=("a=./a",))
    order = QuantizingOrder(model=model, method="int4", output=Path("o"), bits=bits, config=config)
    return [sys.executable, "-c", SCRIPT, msgspec.json.encode(order, enc_hook=str).decode()]


def run(bits):
    done = subprocess.run(command(bits), capture_output=True, timeout=60)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def test_only_messages_come_out():
    code, messages, errors = run(bits=4)
    report = {"ä": 1, "output": "o", "lora": ["a=./a"]}
    assert (code, messages) == (0, [{"phase": "working"}, {"report": report}])
    for printed in (b"of a library", b"not even JSON", b"of a child"):
        assert printed in errors
    assert run(bits=2)[:2] == (2, [{"phase": "working"}, {"problem": "it is too small"}])


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
async def test_it_ends_with_the_command_that_started_it(sent, tmp_path):
    written = tmp_path / "pid"
    starts = f"import subprocess; subprocess.run({command(3, str(written))!r})"
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", starts), stdout=subprocess.DEVNULL
    )
    await until(lambda: written.exists() and written.read_text(), 60)
    parent.send_signal(sent)
    await parent.wait()
    child = int(written.read_text())
    await until(lambda: not is_alive(child), 60)
