"""Files of blocks: what is damaged is refused, and what is old makes room."""

import errno
import os
import random
import secrets
import signal
import subprocess
import sys
import time

import pytest

from engine.errors import ModelLoadError
from engine.llm.kv_store.block_files import BlockFiles

SIZE = 4096


def block():
    return secrets.token_bytes(32), memoryview(secrets.token_bytes(SIZE))


def open_files(folder, max_bytes=64 << 20):
    return BlockFiles(folder, max_bytes)


def stored(folder):
    return [path for path in folder.glob("*/*") if not path.name.endswith(".part")]


def cut(path, other):
    os.truncate(path, random.randrange(SIZE))


def flip(path, other):
    data = bytearray(path.read_bytes())
    data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    path.write_bytes(data)


def lengthen(path, other):
    with path.open("ab") as file:
        file.write(b"x")


def put_another(path, other):
    os.replace(other, path)


def put_a_pipe(path, other):
    path.unlink()
    os.mkfifo(path)


def put_a_link(path, other):
    other.rename(path.parent.parent / "elsewhere")
    path.unlink()
    path.symlink_to(path.parent.parent / "elsewhere")


@pytest.mark.parametrize("damage", [cut, flip, lengthen, put_another, put_a_pipe, put_a_link])
def test_a_false_file_is_refused_and_replaced(tmp_path, damage):
    files = open_files(tmp_path / "new" / "folder")
    (key, contents), (other_key, other) = block(), block()
    assert files.read(key, SIZE) is None and files.num_refused == 0
    assert files.write(key, contents) > SIZE and files.write(other_key, other) > SIZE
    assert files.read(key, SIZE) == contents
    assert files.read(key, SIZE - 1) is None, "another size was asked for"
    assert files.write(key, contents) > SIZE
    paths = {path.name: path for path in stored(tmp_path / "new" / "folder")}
    damage(paths[key.hex()], paths[other_key.hex()])
    assert files.read(key, SIZE) is None
    assert files.num_refused == 2
    assert files.write(key, contents) > SIZE
    assert open_files(tmp_path / "new" / "folder").read(key, SIZE) == contents


def test_files_that_were_used_longest_ago_make_room(tmp_path):
    most, blocks = 16 * 32 * SIZE, [block() for _ in range(1100)]
    kept, used = open_files(tmp_path, most), blocks[:20]
    part = tmp_path / "3" / f"{secrets.token_hex(32)}.1.part"
    part.write_bytes(b"from a server that was killed")
    os.utime(part, (0, 0))
    for number, (key, contents) in enumerate(blocks):
        kept.write(key, contents)
        path = tmp_path / key.hex()[0] / key.hex()
        if path.exists():
            os.utime(path, (number, number))
        if number % 10 == 0:
            kept.touch(key for key, _ in used)
    assert most / 2 < sum(path.stat().st_size for path in stored(tmp_path)) <= most * 1.05
    assert all(kept.has(key) for key, _ in used)
    assert not any(kept.has(key) for key, _ in blocks[20:60])
    assert all(kept.has(key) for key, _ in blocks[-50:])
    assert not part.exists()


def test_a_full_disk_makes_room(tmp_path, monkeypatch):
    files, blocks = open_files(tmp_path), [block() for _ in range(200)]
    for key, contents in blocks:
        files.write(key, contents)
    before = len(stored(tmp_path))
    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(os, "rename", lambda *paths: os.open("/dev/full/x", os.O_RDONLY))
        files.write(*block())
    assert len(stored(tmp_path)) == before, "that was another error"

    def full(*paths):
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(os, "rename", full)
        files.write(*block())
    assert before - 8 < len(stored(tmp_path)) < before
    assert len([*tmp_path.glob("*/*")]) == len(stored(tmp_path)), "nothing unfinished is left"


def test_a_writer_that_is_killed_leaves_no_false_block(tmp_path):
    code = (
        "import hashlib, sys; from pathlib import Path\n"
        "from engine.llm.kv_store.block_files import BlockFiles\n"
        "files = BlockFiles(Path(sys.argv[1]), 1 << 30)\n"
        "for n in range(10**9):\n"
        "    key = hashlib.sha256(b'%d' % (n % 200)).digest()\n"
        "    files.write(key, memoryview(key * 30_000)); print(flush=True)\n"
        "    if n % 3 == 0: (Path(sys.argv[1]) / key.hex()[0] / key.hex()).unlink()\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    writers = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
    for writer in writers:
        for _ in range(20):
            writer.stdout.readline()
    time.sleep(0.1)
    for writer in writers:
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
    files = open_files(tmp_path)
    keys = [bytes.fromhex(path.name) for path in stored(tmp_path)]
    assert keys
    for key in keys:
        assert files.read(key, 32 * 30_000) == key * 30_000
    assert files.num_refused == 0


def test_a_path_that_is_no_folder_is_refused_by_name(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ModelLoadError, match="kv_store") as caught:
            open_files(path)
        assert caught.value.param == "kv_store" and str(tmp_path) not in caught.value.message
