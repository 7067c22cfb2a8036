import hashlib
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from engine.weights.verified_file import has_sha256, is_verified, verify, write_whole

DATA = b"weights"
SHA256 = hashlib.sha256(DATA).hexdigest()


def test_is_verified_after_verify_until_touched(tmp_path):
    path = tmp_path / "a"
    assert not verify(path, SHA256)
    path.write_bytes(DATA)
    assert not is_verified(path, SHA256)
    assert not verify(path, "0" * 64)
    assert not is_verified(path, "0" * 64)
    assert verify(path, SHA256)
    assert is_verified(path, SHA256)
    assert not is_verified(path, "0" * 64)
    os.utime(path, ns=(0, 1))
    assert not is_verified(path, SHA256)
    assert verify(path, SHA256)
    path.write_bytes(DATA + b"!")
    assert not is_verified(path, SHA256)


@pytest.mark.parametrize("record", ["", "[]", "null", "{", '{"sha256": 1}'])
def test_a_damaged_record_counts_as_none(record, tmp_path):
    path = tmp_path / "a"
    path.write_bytes(DATA)
    assert verify(path, SHA256)
    (tmp_path / "a.verified.json").write_text(record)
    assert not is_verified(path, SHA256)


def test_writes_all_or_nothing(tmp_path):
    def broken():
        raise OSError("no more")

    path = tmp_path / "a"
    write_whole(path, [b"old"])
    with pytest.raises(OSError, match="no more"):
        write_whole(path, (chunk for half in (lambda: [b"new"], broken) for chunk in half()))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    write_whole(path, iter([b"n", b"ew"]))
    assert path.read_bytes() == b"new"
    assert has_sha256(path, hashlib.sha256(b"new").hexdigest())


def test_many_writers_at_once(tmp_path):
    path = tmp_path / "a"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: write_whole(path, [bytes([i]) * 1000]), range(40)))
    content = path.read_bytes()
    assert content == content[:1] * 1000
    assert list(tmp_path.iterdir()) == [path]
