"""All ways to run `sample_tokens`."""

from kernels import sample_tokens

RUNS = {"reference": sample_tokens.reference} | {
    name: one.function for name, one in sample_tokens.implementations().items()
}
