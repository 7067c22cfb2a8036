"""Arrays on their way to a device."""

import numpy as np
import pytest
import torch

from kernels.shared import transfer
from kernels.shared.transfer import to_device

SHAPES = [(4, 3), (0,), (7,), (1,), (2, 0), (8,)]


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.float64])
def test_packed_arrays_come_out_as_they_went_in_and_aligned(dtype):
    arrays = [(np.random.standard_normal(shape) * 1000).astype(dtype) for shape in SHAPES]
    buffer, starts = transfer._packed(arrays, pin=False)
    tensors = transfer._split(buffer, arrays, starts)
    for array, tensor, start in zip(arrays, tensors, starts, strict=True):
        assert np.array_equal(tensor.numpy(), array)
        assert tensor.shape == array.shape
        assert start * array.itemsize % transfer.ALIGNMENT_BYTES == 0


def test_on_a_cpu_nothing_is_copied():
    arrays = [np.arange(3), np.zeros((2, 2))]
    for array, tensor in zip(arrays, to_device(arrays, torch.device("cpu")), strict=True):
        assert tensor.data_ptr() == array.ctypes.data


@pytest.mark.gpu
def test_on_a_gpu_the_host_does_not_wait():
    device = torch.device("cuda")
    arrays = [np.arange(5), np.arange(12).reshape(3, 4)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        tensors = to_device(arrays, device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for array, tensor in zip(arrays, tensors, strict=True):
        assert np.array_equal(tensor.cpu().numpy(), array)
