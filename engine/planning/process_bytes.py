"""The memory of a worker before it reads a weight."""

from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class ProcessBytes:
    """The memory of a process on a CPU: Python, torch and its libraries, the model's code and
    tokenizer, and what loading leaves behind."""

    own_bytes: int
    library_bytes: int
    """The pages of libraries' files, which all workers share."""

    @property
    def total_bytes(self) -> int:
        """What a worker takes that shares with no other process."""
        return self.own_bytes + self.library_bytes

    def beyond(self, other: "ProcessBytes") -> "ProcessBytes":
        """What it takes in addition to another one's own memory."""
        return ProcessBytes(self.own_bytes - other.own_bytes, self.library_bytes)


SMALLEST = "text"
PROCESSES = {
    SMALLEST: ProcessBytes(235 * MIB, 170 * MIB),
    "image": ProcessBytes(380 * MIB, 205 * MIB),
}
"""By the kind of the model; the other kinds take no more than text models. Measured with the
built-in models and GGUF files of 135 million and a billion weights: text models took 180 to 234 MiB
of their own beside weights, pool and structures."""
_READER_BYTES = 16 * MIB
_TOKEN_BYTES = 2560
CONTEXT_BYTES = 600 * MIB
"""The memory of a GPU's CUDA context and of its libraries' code on the device."""


def structure_bytes(vocab_size: int) -> int:
    """The memory that a text model's structures take even if nobody asks for one: the table of
    tokens, and the process that reads structures and has another one. With 49,152 tokens both took
    90 to 130 MiB, with 262,144 tokens 505 while they were made; that model's tokenizer took another
    110 MiB more than the first one's, which is counted here too."""
    return _READER_BYTES + vocab_size * _TOKEN_BYTES
