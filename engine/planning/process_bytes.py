"""What a worker takes before it reads a weight."""

MIB = 1 << 20

HOST_BYTES = {"text": 480 * MIB, "image": 550 * MIB}
"""Of a process on a CPU, by the kind of its model: Python, torch and its libraries, what a model's
code and tokenizer take, and what loading leaves behind. As a worker that shares its libraries with
no other process has them: their files' pages count whole. Measured of the built-in models, of text
models 440 to 520."""
CONTEXT_BYTES = 600 * MIB
"""On a GPU: CUDA's context and its libraries' code, which is on the device."""
