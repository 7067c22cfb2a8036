"""A recording computes what the function would, from what its inputs hold then."""

import gc
import platform

import pytest
import torch
import torch.nn.functional as F

from kernels import add_rms_norm, native, rms_norm, rope_store_kv, silu_mul
from kernels.native import NotedCall
from kernels.native_recording import NativeRecorder, NotRecordable, computed_once, refuse_recording
from kernels.noted_calls import joined

pytestmark = pytest.mark.skipif(native.library() is None, reason=str(native.missing()))

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def block(x, table, ids, weight):
    """Calls of C++ and of PyTorch, views, results that go and one that is changed in place."""
    residual = F.embedding(ids, table)
    added = torch.zeros_like(residual)
    for _ in range(5):
        added = add_rms_norm(added, residual, weight, 1e-5)
        wide = torch.cat((added, rms_norm(x, weight, 1e-5)), -1)
        added = silu_mul(wide).narrow(1, 0, added.shape[1])
        added.mul_(0.5)
    return add_rms_norm(added, residual, weight, 1e-5)


def random_inputs(rows, size, dtype):
    return (
        torch.randn(rows, size).to(dtype),
        torch.randn(50, size).to(dtype),
        torch.randint(0, 50, (rows,)),
        torch.randn(size),
    )


@torch.inference_mode()
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "size"), [(1, 8), (3, 64), (17, 100)])
def test_a_replay_equals_the_function_on_new_inputs(dtype, rows, size):
    inputs = random_inputs(rows, size, dtype)
    recording = NativeRecorder().record(lambda: block(*inputs))
    for _ in range(3):
        for one, new in zip(inputs, random_inputs(rows, size, dtype), strict=True):
            one.copy_(new)
        expected = block(*inputs)
        assert torch.equal(recording.replay(), expected)


@torch.inference_mode()
def test_recording_computes_nothing():
    rows = torch.arange(3)
    heads, cos_sin = torch.randn(3, 3, 8), torch.randn(4, 8)
    cache, before = torch.zeros(1, 2, 1, 4, 8), heads.clone()

    def store():
        rope_store_kv(heads, rows, cos_sin, cache, (torch.zeros_like(rows), rows), num_heads=1)
        return rms_norm(heads.view(9, 8), torch.ones(8), 1e-5)

    recording = NativeRecorder().record(store)
    assert torch.equal(heads, before)
    assert not cache.any()
    recording.replay()
    assert cache[0, :, 0, :3].all()


@torch.inference_mode()
def test_recordings_share_memory_and_do_not_disturb_each_other():
    recorder = NativeRecorder()
    made = []
    for rows in (4, 1, 3, 4, 2):
        inputs = random_inputs(rows, 500, torch.float32)
        made.append((inputs, recorder.record(lambda inputs=inputs: block(*inputs))))
    gc.collect()
    for _ in range(2):
        for inputs, recording in made:
            assert torch.equal(recording.replay(), block(*inputs))


@torch.inference_mode()
@pytest.mark.parametrize("by_torch", [False, True])
def test_memory_is_used_again_within_a_recording_and_by_the_next(by_torch):
    """What PyTorch computes is noted with its arguments, which must not keep theirs."""
    recorder = NativeRecorder()
    x, weight = torch.randn(2, 5000), torch.ones(5000)

    def run(steps):
        y = x
        for _ in range(steps):
            y = rms_norm(y, weight, 1e-5)
            if by_torch:
                y = torch.cat((y[:1], y[1:]))
                y.mul_(0.5)
        return y

    recorder.record(lambda: run(40))
    buffers = recorder._buffers.num_bytes
    recorder.record(lambda: run(300))
    assert recorder._buffers.num_bytes <= buffers + 65536
    assert buffers <= 6 * 65536


@torch.inference_mode()
@pytest.mark.parametrize(
    "copy",
    [
        lambda x: x.T.contiguous(),
        lambda x: x.T.reshape(-1),
        lambda x: x.T.reshape(8, 2, 2).transpose(0, 1).contiguous().view(2, -1),
    ],
)
def test_copies_that_look_like_views_are_made_anew(copy):
    x = torch.randn(4, 8)
    recording = NativeRecorder().record(lambda: copy(x) + 1)
    for _ in range(3):
        x.copy_(torch.randn(4, 8))
        assert torch.equal(recording.replay(), copy(x) + 1)


@torch.inference_mode()
def test_views_are_not_copied():
    x = torch.randn(4, 8)
    recording = NativeRecorder().record(lambda: x.reshape(-1).view(8, 4).contiguous() + 1)
    assert len(recording.calls) == 1


def test_an_operation_may_refuse():
    refuse_recording("nothing is recorded")
    with pytest.raises(NotRecordable, match="too large"):
        NativeRecorder().record(lambda: refuse_recording("too large"))
    refuse_recording("nothing is recorded any more")


@torch.inference_mode()
def test_a_recording_outlives_its_recorder():
    inputs = random_inputs(5, 64, torch.float32)
    recording = NativeRecorder().record(lambda: block(*inputs))
    gc.collect()
    others = [torch.full((5, 64), float("nan")) for _ in range(200)]
    assert torch.equal(recording.replay(), block(*inputs)) and others


@torch.inference_mode()
def test_what_is_computed_once_is_no_part_of_a_recording():
    tables = []

    @computed_once()
    def fill():
        tables.append(rms_norm(torch.randn(4, 8).cos(), torch.ones(8), 1e-5))

    def run():
        if not tables:
            fill()
        return rms_norm(tables[0], torch.ones(8), 1e-5)

    recording = NativeRecorder().record(run)
    assert len(recording.calls) == 2, "ones and the norm"
    torch.testing.assert_close(tables[0].square().mean(-1), torch.ones(4), rtol=0.1, atol=0.0)
    tables[0].normal_()
    assert torch.equal(recording.replay(), run())


@torch.inference_mode()
def test_what_reads_numbers_is_refused():
    x = torch.randn(3, 8)
    with pytest.raises(NotRecordable, match="item"):
        NativeRecorder().record(lambda: rms_norm(x, torch.ones(8), float(x.abs().max())))
    assert native._noted.calls is None, "a refusal ends the noting"


@torch.inference_mode()
def test_nothing_is_noted_outside_of_a_recording():
    x = torch.randn(3, 8)
    recording = NativeRecorder().record(lambda: rms_norm(x, torch.ones(8), 1e-5))
    num = len(recording.calls)
    rms_norm(x, torch.ones(8), 1e-5)
    assert len(recording.calls) == num


@torch.inference_mode()
def test_calls_in_a_row_become_one():
    x, weight = torch.randn(3, 64), torch.randn(64)

    def run():
        y = rms_norm(rms_norm(rms_norm(x, weight, 1e-5), weight, 1e-5), weight, 1e-5)
        return rms_norm(y.cos(), weight, 1e-5)

    recording = NativeRecorder().record(run)
    assert len(recording.calls) == 3
    x.copy_(torch.randn(3, 64))
    assert torch.equal(recording.replay(), run())


@pytest.mark.parametrize("signature", ["p" * 25, "fffff"])
def test_calls_with_too_many_arguments_are_made_as_they_are(signature):
    made = []
    calls = [NotedCall(lambda *given: made.append(given), signature, tuple(range(len(signature))))]
    (call,) = joined(calls)
    call()
    assert made == [calls[0].arguments]


@torch.inference_mode()
def test_on_other_machines_each_call_is_made_by_itself(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    x, weight = torch.randn(3, 64), torch.randn(64)

    def run():
        return rms_norm(rms_norm(x, weight, 1e-5), weight, 1e-5)

    recording = NativeRecorder().record(run)
    assert len(recording.calls) == 2
    assert torch.equal(recording.replay(), run())
