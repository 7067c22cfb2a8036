"""Runs pip in this process, and ends with the process that started it.

This is a script and not a module: `python -P pip_child.py TEMP_DIR ARGUMENTS...` with a pipe as
standard input. When the pipe closes, because the parent closed it or died, pip ends, too. Its
temporary files go to TEMP_DIR, as `/tmp` is often too small and a killed pip cannot clean up.
"""

import os
import runpy
import sys
import tempfile
import threading


def _end_with_parent() -> None:
    # Not through sys.stdin: a thread that waits in a buffered reader breaks the interpreter's exit.
    while os.read(0, 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    tempfile.tempdir = sys.argv.pop(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    runpy.run_module("pip", run_name="__main__", alter_sys=True)
