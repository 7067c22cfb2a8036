"""Moving memory to huge pages must never change it, and must not fill what was never touched."""

import subprocess
import sys

SCRIPT = """
import mmap, re
from pathlib import Path
from engine.runtime.huge_pages import use_huge_pages

def resident():
    return int(re.search(r"Rss:\\s+(\\d+)", Path("/proc/self/smaps_rollup").read_text())[1]) << 10

data = mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for at in range(0, len(data), 4096):
    data[at] = at // 4096 % 251
moved = use_huge_pages()
untouched = mmap.mmap(-1, 1 << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
assert all(data[at] == at // 4096 % 251 for at in range(0, len(data), 4096))
assert resident() < 200 << 20, resident()
print(moved)
"""


FREED = """
import ctypes, random, re
from pathlib import Path
from engine.runtime.huge_pages import use_huge_pages

def resident():
    return int(re.search(r"Rss:\\s+(\\d+)", Path("/proc/self/smaps_rollup").read_text())[1]) << 10

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.mallopt(-1, 1 << 30)  # the threshold above which free() gives memory back by itself
pieces = [libc.malloc(64 << 10) for _ in range(random.randint(1500, 2500))]
kept = libc.malloc(64 << 10)  # lies above them, so that they are a hole
for piece in pieces:
    ctypes.memset(piece, 1, 64 << 10)
before = resident()
for piece in pieces:
    libc.free(ctypes.c_void_p(piece))
use_huge_pages()
print((before - resident()) / (len(pieces) << 16))
"""


def test_freed_memory_is_given_back():
    done = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 0.8


def test_memory_keeps_its_content_and_its_size():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 0 <= int(done.stdout) < 1 << 30
