"""The definition: row by row, in fp32, rounded once."""

from torch import Tensor


def lora_gather(
    y: Tensor, x: Tensor, a: Tensor, b: Tensor, adapter_ids: Tensor, scales: Tensor
) -> None:
    """See `kernels.lora_gather`."""
    for row, adapter in enumerate(adapter_ids.tolist()):
        if adapter < 0:
            continue
        inner = a[adapter].float() @ x[row].float()
        update = inner @ b[adapter].float()
        y[row] = (y[row].float() + scales[adapter] * update).to(y.dtype)
