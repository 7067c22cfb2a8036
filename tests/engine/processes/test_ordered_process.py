"""What a process writes that a command has started."""

import json
import subprocess
import sys

SCRIPT = """
import os, sys
from engine.errors import InvalidParameter
from engine.processes.ordered_process import run_ordered

def carry_out(order, tell):
    print('{"problem": "of a library"}')
    os.write(1, b'{ not even JSON\\n')
    tell({"phase": "working"})
    os.system("echo '{ of a child'")
    if order["fails"]:
        raise InvalidParameter("it is too small")
    return {"ä": 1}

sys.exit(run_ordered(carry_out))
"""


def run(fails):
    order = json.dumps({"fails": fails})
    done = subprocess.run([sys.executable, "-c", SCRIPT, order], capture_output=True, timeout=60)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def test_only_messages_come_out():
    code, messages, errors = run(fails=False)
    assert (code, messages) == (0, [{"phase": "working"}, {"report": {"ä": 1}}])
    for printed in (b"of a library", b"not even JSON", b"of a child"):
        assert printed in errors
    assert run(fails=True)[:2] == (2, [{"phase": "working"}, {"problem": "it is too small"}])
