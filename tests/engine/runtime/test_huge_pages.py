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


def test_memory_keeps_its_content_and_its_size():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 0 <= int(done.stdout) < 1 << 30
