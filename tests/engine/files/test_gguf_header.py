"""Our reader against the `gguf` library's writer and reader, and against damaged files."""

import os
import random
import struct
from typing import Any

import gguf
import pytest

from engine.errors import CorruptFile, EngineError, ModelLoadError
from engine.files.gguf_header import read_gguf_header

VALUES: dict[str, Any] = {
    "some.text": "naïve 😀\n",
    "some.flag": True,
    "some.strings": ["a", "", "日本", "x" * 300],
    "some.ints": [1, -2, 3],
    "some.floats": [0.5, -1.25],
    "some.bools": [True, False],
    "some.nested": [[1, 2], [3, 4]],
}
SCALARS = [
    ("add_uint8", 255), ("add_int8", -128), ("add_uint16", 65535), ("add_int16", -32768),
    ("add_uint32", 2**32 - 1), ("add_int32", -(2**31)), ("add_uint64", 2**64 - 1),
    ("add_int64", -(2**63)), ("add_float32", 0.25), ("add_float64", 1e300), ("add_bool", False),
]  # fmt: skip


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in VALUES.items():
        {str: writer.add_string, bool: writer.add_bool, list: writer.add_array}[type(value)](
            key, value
        )
    for method, value in SCALARS:
        getattr(writer, method)(f"scalar.{method}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def test_reads_what_the_library_wrote(written):
    metadata = read_gguf_header(written).metadata
    expected = {**VALUES, **{f"scalar.{method}": value for method, value in SCALARS}}
    assert {key: metadata[key] for key in expected} == expected
    assert metadata["general.architecture"] == "llama"
    assert [type(metadata[key]) for key in VALUES] == [type(value) for value in VALUES.values()]
    without = read_gguf_header(written, keeps_arrays=False).metadata
    assert without == {
        key: [[] for item in value if isinstance(item, list)] if isinstance(value, list) else value
        for key, value in metadata.items()
    }


def test_every_truncation_is_reported(written):
    for size in reversed(range(written.stat().st_size)):
        os.truncate(written, size)
        with pytest.raises(CorruptFile):
            read_gguf_header(written)


def test_damaged_bytes_never_escape_as_another_error(written):
    """Any byte may be anything: an answer or one of our errors, at once and in little memory."""
    data = written.read_bytes()
    for _ in range(600):
        damaged = bytearray(data)
        for _ in range(random.randint(1, 4)):
            value = random.choice((0, 1, 9, 127, 255, random.randrange(256)))
            damaged[random.randrange(len(data))] = value
        written.write_bytes(damaged)
        try:
            read_gguf_header(written, keeps_arrays=random.random() < 0.5)
        except EngineError:
            pass
        except BaseException as error:
            pytest.fail(repr(error))


def header(
    version: int, num_keys: int, body: bytes, order: str = "<", num_tensors: int = 0
) -> bytes:
    return b"GGUF" + struct.pack(f"{order}IQQ", version, num_tensors, num_keys) + body


def key(name: bytes, value_type: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name + struct.pack("<I", value_type) + value


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"", CorruptFile, "not a complete GGUF file"),
        (b"PK\x03\x04" + bytes(60), CorruptFile, "not a complete GGUF file"),
        (header(1, 0, b""), ModelLoadError, "version 1;"),
        (header(4, 0, b""), ModelLoadError, "version 4;"),
        (header(3, 0, b"", order=">"), ModelLoadError, "little-endian"),
        # Counts that only an endless loop or a huge list could satisfy.
        (header(3, 2**63, bytes(64)), CorruptFile, "damaged"),
        (header(3, 0, bytes(1000), num_tensors=2**63), CorruptFile, "damaged"),
        (header(3, 1, struct.pack("<Q", 2**64 - 1) + bytes(1000)), CorruptFile, "damaged"),
        (header(3, 1, key(b"k", 9, struct.pack("<IQ", 8, 2**60))), CorruptFile, "damaged"),
        (header(3, 1, key(b"k", 9, struct.pack("<IQ", 9, 2**60))), CorruptFile, "damaged"),
        (header(3, 1, key(b"k", 9, struct.pack("<IQ", 77, 1))), CorruptFile, "damaged"),
        (header(3, 1, key(b"k", 13, b"")), CorruptFile, "damaged"),
        (header(3, 1, key(b"k", 8, struct.pack("<Q", 2**64 - 1))), CorruptFile, "damaged"),
        (header(3, 1, key(b"k", 9, struct.pack("<IQ", 0, 2**60))), CorruptFile, "damaged"),
        (header(3, 1, key(b"k", 9, struct.pack("<IQ", 9, 1) * 50)), CorruptFile, "damaged"),
        (header(3, 2, key(b"k", 7, b"\1") * 2), CorruptFile, "damaged"),
        (header(3, 1, key(b"\xff", 7, b"\1")), CorruptFile, "damaged"),
    ],
)
def test_says_what_is_wrong(tmp_path, content, error, message):
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    for keeps_arrays in (True, False):
        with pytest.raises(error, match=message) as caught:
            read_gguf_header(path, keeps_arrays=keeps_arrays)
        assert str(tmp_path) not in str(caught.value)


def test_a_huge_array_within_a_huge_file_is_refused(tmp_path):
    """A count that the file has room for, but that no metadata has."""
    path = tmp_path / "sparse.gguf"
    with path.open("wb") as file:
        file.write(header(3, 1, key(b"k", 9, struct.pack("<IQ", 0, 1 << 30))))
        file.truncate(1 << 31)
    with pytest.raises(CorruptFile):
        read_gguf_header(path)


@pytest.mark.parametrize(
    ("name", "words"), [("missing.gguf", "cannot be read"), (".", "is a folder")]
)
def test_unreadable(tmp_path, name, words):
    with pytest.raises(ModelLoadError, match=words):
        read_gguf_header(tmp_path / name)


@pytest.mark.slow
def test_equals_the_library_on_the_real_model(smollm2_checkpoint):
    path = smollm2_checkpoint.path
    fields = gguf.GGUFReader(path).fields
    theirs = {k: f.contents() for k, f in fields.items() if not k.startswith("GGUF.")}
    assert read_gguf_header(path).metadata == theirs
