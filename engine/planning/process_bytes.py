"""The memory of a worker before it reads a weight."""

MIB = 1 << 20

HOST_BYTES = {"text": 385 * MIB, "image": 550 * MIB}
"""The memory of a process on a CPU, by the kind of its model: Python, torch and its libraries, the
model's code and tokenizer, and what loading leaves behind. The pages of libraries' files count
whole, as for a worker that shares them with no other process. Measured with the built-in models;
text models took 350 to 410."""
CONTEXT_BYTES = 600 * MIB
"""The memory of a GPU's CUDA context and of its libraries' code on the device."""
