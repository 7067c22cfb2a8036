"""Low-rank updates of rows that have different adapters, in one call."""

from torch import Tensor

from kernels import _triton
from kernels.lora_gather import cases, composed, cpu, reference
from kernels.registry import op


@op(cases)
def lora_gather(
    y: Tensor, x: Tensor, a: Tensor, b: Tensor, adapter_ids: Tensor, scales: Tensor
) -> None:
    """Add each row's low-rank update: `y[t] += scales[i] * (a[i] @ x[t]) @ b[i]`, i its adapter.

    Args:
        y: [T, N], fp32, bf16 or fp16; rows may be strided (part of a packed projection). Mutated.
        x: [T, K], y's dtype; rows may be strided.
        a: [L, r, K], y's dtype, contiguous; r <= 256. Adapters of a lower rank are padded with
            zeros in a and b.
        b: [L, r, N], y's dtype, contiguous: turned, as neighbouring outputs are read together.
        adapter_ids: [T] int32, -1: the row stays as it is.
        scales: [L] fp32.

    The inner product of r elements stays in fp32 and the sum is rounded once. No host sync,
    unless an implementation says so.

    Papers: Hu et al. 2021, arXiv:2106.09685; Chen et al. 2023 (Punica), arXiv:2310.18547.
    """
    reference.lora_gather(y, x, a, b, adapter_ids, scales)


lora_gather.implementation("composed", supports=composed.supports)(composed.lora_gather)
lora_gather.implementation("cpu", supports=cpu.supports)(cpu.lora_gather)
if _triton.AVAILABLE:
    from kernels.lora_gather import triton as triton_lora

    lora_gather.implementation("triton", supports=triton_lora.supports)(triton_lora.lora_gather)
