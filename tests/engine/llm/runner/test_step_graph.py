"""Recorded decode steps, without CUDA: a recording here runs the same code on the same inputs."""

import contextlib
import dataclasses
import random
from concurrent.futures import Executor, Future

import numpy as np
import pytest
import structlog
import torch

from engine.llm.decision import GroupBlocks, ScheduledSequence
from engine.llm.engine import LLMEngine
from engine.llm.runner import step_graph
from engine.llm.runner.batch import lay_out
from engine.llm.runner.cuda_recorder import CudaRecorder
from engine.llm.runner.model_runner import ModelRunner
from engine.llm.runner.step_graph import EAGER_STEPS, AtOnce, GraphSize, StepGraphs
from engine.llm.scheduler import Scheduler
from engine.models.layers import rotary
from engine.models.registry import create_model
from kernels import native
from kernels.native_recording import NativeRecorder
from tests.helpers.llm.recorder import Recorder, requests, run
from tests.helpers.llm.steps import resolved
from tests.helpers.models.tiny_pairs import create_pair, named_weights

CPU = torch.device("cpu")
BLOCK = 4


class Later(Executor):
    """A background that works when told to."""

    def __init__(self):
        self.waiting = []

    def submit(self, function, /, *args, **kwargs):
        future = Future()
        self.waiting.append(lambda: future.set_result(function(*args, **kwargs)))
        return future

    def work(self):
        while self.waiting:
            self.waiting.pop()()


def decode(seq_id, context_len, block_ids=None):
    blocks = block_ids or list(range(-(-context_len // BLOCK)))
    # A second group of layers whose blocks are others.
    groups = [GroupBlocks(blocks), GroupBlocks([block + 500 for block in blocks])]
    return ScheduledSequence(seq_id, [5], context_len - 1, groups, 1, 1)


def decodes(*context_lens):
    return lay_out([decode(i, length) for i, length in enumerate(context_lens)], BLOCK)


class Seeing:
    """A forward pass that notes its last batch."""

    def __call__(self, batch):
        self.last = batch
        return batch.token_ids[:, None].float()


def make_graphs(recorder=None, background=None, forward=None, **limits):
    return StepGraphs(
        forward or Seeing(),
        recorder or Recorder(),
        block_size=BLOCK,
        scratch_block=999,
        num_groups=2,
        device=CPU,
        background=background or AtOnce(),
        **({"max_num_rows": 30, "max_model_len": 5000} | limits),
    )


def find_often(graphs, rows):
    for _ in range(EAGER_STEPS):
        assert graphs.find(rows) is None
    return graphs.find(rows)


def test_numbers_of_rows_that_have_a_graph():
    sizes = [CudaRecorder.padded(None, n) for n in range(1, 100)]
    assert sorted(set(sizes))[:8] == [1, 2, 4, 8, 16, 24, 32, 40]
    assert all(size >= n for n, size in enumerate(sizes, 1))


@pytest.mark.parametrize(
    ("context_lens", "size"),
    [
        ([1], GraphSize(1, 1024)),
        ([9, 1024, 3], GraphSize(4, 1024)),
        ([1025] + [3] * 8, GraphSize(16, 4096)),
        ([4096] * 24, GraphSize(24, 4096)),
        ([4097] * 25, GraphSize(30, 5000)),
    ],
)
def test_a_step_gets_the_next_larger_size(context_lens, size):
    graphs = make_graphs()
    assert find_often(graphs, decodes(*context_lens)) is not None
    assert list(graphs._graphs) == [size]


@pytest.mark.parametrize("limits", [(30, 5000), (1, 64), (9, 1024), (64, 32768)])
def test_all_sizes_are_those_that_steps_can_ask_for(limits):
    max_num_rows, max_model_len = limits
    graphs = make_graphs(max_num_rows=max_num_rows, max_model_len=max_model_len)
    asked = {
        graphs._size_for(decodes(length, *[1] * (rows - 1)))
        for rows in range(1, max_num_rows + 1)
        for length in {1, 1024, 1025, 4096, 4097, max_model_len}
        if length <= max_model_len
    }
    largest = GraphSize(max_num_rows, max_model_len)
    assert graphs.sizes[0] == largest
    assert asked <= set(graphs.sizes)
    assert len(graphs.sizes) == len(set(graphs.sizes))


def test_steps_that_no_graph_holds_run_eagerly():
    chunk = ScheduledSequence(1, [1, 2], 0, [GroupBlocks([1])] * 2, 1, 0)
    graphs = make_graphs(max_num_rows=3, max_model_len=64)
    for rows in (
        lay_out([chunk], BLOCK),
        lay_out([decode(0, 5), chunk], BLOCK),
        decodes(3, 4, 5, 6),
        decodes(65),
    ):
        assert find_often(graphs, rows) is None
    assert not graphs._graphs


def test_a_size_is_recorded_once_it_was_met_a_few_times_and_used_once_that_is_done():
    background, recorder = Later(), Recorder()
    graphs = make_graphs(recorder, background)
    for _ in range(EAGER_STEPS):
        assert graphs.find(decodes(3, 4)) is None
        assert not background.waiting
    for _ in range(5):
        assert graphs.find(decodes(2, 9)) is None, "not ready"
        assert len(background.waiting) == 1
    background.work()
    graph = graphs.find(decodes(2, 9))
    assert graph is graphs.find(decodes(7, 7)) is not None
    assert recorder.num_recordings == 1


class CheapRecorder(Recorder):
    is_cheap = True
    padded = NativeRecorder.padded
    padded_with_prompts = NativeRecorder.padded_with_prompts


def test_a_cheap_recording_is_made_and_used_when_its_size_is_first_met():
    recorder = CheapRecorder()
    graphs = make_graphs(recorder)
    assert graphs.find(decodes(3, 4)) is graphs.find(decodes(2, 9)) is not None
    assert recorder.num_recordings == 1


def test_cheap_recordings_of_short_texts_are_made_ahead_small_ones_first():
    recorder = CheapRecorder()
    graphs = make_graphs(recorder, adapters=True)
    met = graphs.find(decodes(3, 4))
    while graphs.record_ahead():
        pass
    [_, *ahead] = graphs._graphs
    assert ahead == sorted(ahead)
    wanted = [GraphSize(n, 1024) for n in range(1, 31)]
    wanted += [GraphSize(n, 1024, has_prompts=True) for n in range(8, 257, 8)]
    assert sorted(graphs._graphs) == sorted(wanted)
    assert recorder.num_recordings == len(wanted)
    assert graphs.find(decodes(3, 4)) is met
    assert graphs.find(decodes(*[5] * 30)) is not None
    assert not graphs.record_ahead()
    assert recorder.num_recordings == len(wanted)


def test_steps_with_adapters_are_recorded_ahead_after_others_and_again_when_adapters_move():
    recorder = CheapRecorder()
    graphs = make_graphs(recorder, adapters=True)
    for first_time in (True, False):
        before = recorder.num_recordings
        graphs.renew_adapters()
        while graphs.record_ahead():
            pass
        sizes = list(graphs._graphs)
        assert [size.has_adapters for size in sizes] == sorted(size.has_adapters for size in sizes)
        alike = {False: set(), True: set()}
        for size in sizes:
            alike[size.has_adapters].add(dataclasses.replace(size, has_adapters=False))
        assert alike[False] == alike[True]
        assert recorder.num_recordings - before == len(alike[True]) * (2 if first_time else 1)


def test_recording_ahead_begins_with_what_is_like_the_last_step():
    graphs = make_graphs(CheapRecorder(), adapters=True)
    graphs.renew_adapters()
    for has_adapters in random.sample([False, True] * 3, 6):
        graphs.find((with_adapters if has_adapters else decodes)(9, 9))
        before = set(graphs._graphs)
        assert graphs.record_ahead()
        [size] = set(graphs._graphs) - before
        assert size.has_adapters is has_adapters


def test_recording_ahead_ends_when_its_time_is_over(monkeypatch):
    graphs = make_graphs(CheapRecorder())
    assert graphs.record_ahead()
    monkeypatch.setattr(step_graph, "AHEAD_S", 0.0)
    assert not graphs.record_ahead()
    assert len(graphs._graphs) == 1


def test_recording_ahead_stops_at_what_cannot_be_recorded():
    recorder = CheapRecorder(RuntimeError("no"))
    graphs = make_graphs(recorder)
    with structlog.testing.capture_logs() as lines:
        while graphs.record_ahead():
            pass
    assert recorder.num_recordings == len(lines) == 2, "one of each kind"


def test_dear_recordings_are_not_made_ahead():
    assert not make_graphs().record_ahead()


def test_a_failed_recording_turns_graphs_off_with_one_warning():
    recorder = Recorder(RuntimeError("operation not permitted when stream is capturing"))
    graphs = make_graphs(recorder)
    with structlog.testing.capture_logs() as lines:
        for context_lens in ([3], [3, 4], [3, 4, 5]):
            assert find_often(graphs, decodes(*context_lens)) is None
    assert recorder.num_recordings == 1
    [line] = lines
    assert line["log_level"] == "warning"
    assert "operation not permitted" in line["reason"]


def with_adapters(*context_lens):
    rows = [decode(i, length) for i, length in enumerate(context_lens)]
    return lay_out(rows, BLOCK, {0: 3, len(rows) - 1: 1})


@torch.inference_mode()
def test_steps_with_adapters_have_graphs_of_their_own():
    forward = Seeing()
    graphs = make_graphs(forward=forward, adapters=True)
    graph, plain = find_often(graphs, with_adapters(9, 8, 7)), find_often(graphs, decodes(9, 8, 7))
    graph.load(with_adapters(9, 8, 7))
    graph.replay()
    assert forward.last.adapter_slots.tolist() == [3, -1, 1, -1]
    plain.load(decodes(9, 8, 7))
    plain.replay()
    assert forward.last.adapter_slots is None
    assert set(graphs._graphs) == {GraphSize(4, 1024, True), GraphSize(4, 1024)}
    assert set(graphs._graphs) <= set(graphs.sizes)


def test_steps_without_adapters_are_recorded_where_those_with_some_cannot_be():
    recorder = Recorder(RuntimeError("no"))
    graphs = make_graphs(recorder, adapters=True)
    assert find_often(graphs, with_adapters(5)) is None
    recorder.failure = None
    assert find_often(graphs, with_adapters(5, 6)) is None
    assert find_often(graphs, decodes(5)) is not None


def test_steps_with_other_adapters_are_recorded_anew():
    recorder = Recorder()
    graphs = make_graphs(recorder, adapters=True)
    first, plain = find_often(graphs, with_adapters(5, 6)), find_often(graphs, decodes(5, 6))
    graphs.renew_adapters()
    second = find_often(graphs, with_adapters(5, 6))
    assert second is not None and second is not first
    assert graphs.find(decodes(5, 6)) is plain
    recorder.failure = RuntimeError("no")
    assert find_often(graphs, with_adapters(9, 8, 7, 6, 5, 4, 3, 2)) is None
    recorder.failure = None
    graphs.renew_adapters()
    assert find_often(graphs, with_adapters(5, 6)) is not None


@torch.inference_mode()
def test_padding_decodes_at_the_start_of_the_scratch_block():
    forward = Seeing()
    graphs = make_graphs(forward=forward)
    first, second = decodes(5, 6, 7, 8, 9), decodes(12, 2, 1, 13, 1, 30)
    graph = find_often(graphs, first)
    for rows in (first, second, first):
        graph.load(rows)
        graph.replay()
        batch, count = forward.last, rows.num_rows
        assert torch.equal(batch.positions[:count], torch.from_numpy(rows.inputs[1]))
        assert batch.positions[count:].tolist() == batch.token_ids[count:].tolist()
        assert batch.positions[count:].tolist() == [0] * (8 - count)
        for group, (paged, (blocks, slots)) in enumerate(batch.groups):
            assert blocks[:count].tolist() == rows.inputs[3 + group].tolist()
            assert blocks[count:].tolist() == [999] * (8 - count)
            assert slots.tolist() == [*rows.inputs[2].tolist(), *[0] * (8 - count)]
            assert paged.context_lens.tolist() == [*rows.context_lens.tolist(), *[1] * (8 - count)]
            tables = rows.block_tables[group]
            assert np.array_equal(paged.block_tables[:count, : tables.shape[1]].numpy(), tables)
            assert (paged.block_tables[count:, 0] == 999).all()
            assert paged.cu_seqlens_q.tolist() == list(range(9))
            assert (paged.num_decodes, paged.host_context_lens[0]) == (8, 1024)
        assert len(batch.groups) == 2


@torch.inference_mode()
def test_spans_of_prompts_lie_between_decodes_and_padding():
    forward = Seeing()

    def chunk(seq_id, start, num_tokens):
        blocks = [GroupBlocks(list(range(start + num_tokens)))] * 2
        return ScheduledSequence(seq_id, list(range(1, num_tokens + 1)), start, blocks, 1, 0)

    recorder = Recorder()
    recorder.padded_with_prompts = NativeRecorder().padded_with_prompts
    graphs = make_graphs(recorder, forward=forward, max_num_rows=4)
    steps = [
        lay_out([decode(0, 5), chunk(1, 0, 4), chunk(2, 7, 5)], BLOCK),
        lay_out([chunk(1, 3, 15)], BLOCK),
        lay_out([decode(n, 9) for n in range(14)] + [chunk(20, 0, 2)], BLOCK),
    ]
    graph = find_often(graphs, steps[0])
    assert all(graphs.find(rows) is graph for rows in steps)
    assert list(graphs._graphs) == [GraphSize(16, 1024, has_prompts=True)]
    for rows in (*steps, steps[0]):
        graph.load(rows)
        graph.replay()
        count, num_spans = rows.num_rows, len(rows.spans)
        [paged, *_] = [paged for paged, _ in forward.last.groups]
        ends = [*rows.cu_seqlens_q.tolist(), *range(count + 1, 17)]
        assert paged.cu_seqlens_q.tolist() == ends + [16] * (17 - len(ends))
        expected = [*rows.context_lens.tolist(), *[1] * (16 - num_spans)]
        assert paged.context_lens.tolist() == expected
        assert (paged.block_tables[num_spans:, 0] == 999).all()
    assert find_often(graphs, lay_out([chunk(1, 0, 257)], BLOCK)) is None, "many rows"


@pytest.fixture(scope="module")
def pair():
    return create_pair("Llama", 11)


def make_engine(pair, recorder=None, background=AtOnce, **facts):
    ours, _, model_config = pair
    config = resolved(
        num_kv_blocks=80,
        max_num_seqs=11,
        max_num_batched_tokens=40,
        num_recurrent_slots=22 if model_config.recurrent_bytes(1) else 0,
        **facts,
    )
    how = {"recorder": recorder, "background": background and background()}
    runner = ModelRunner(ours, model_config, config, CPU, **how)
    for states in runner._recurrent.values():
        for one in states:
            one.zero_()  # so that unused slots are equal, too
    scheduler = Scheduler(config, eos_token_ids=(0,), vocab_size=model_config.vocab_size)
    return LLMEngine(scheduler, runner, config), runner


@pytest.mark.parametrize("is_async", [False, True])
def test_answers_and_cache_are_those_of_eager_steps(pair, monkeypatch, is_async):
    monkeypatch.setattr(step_graph, "SHORTEST_CONTEXT", 16)
    seed = 20  # fixed: in fp32 a draw can be so close to a border that padding moves it
    asked = requests(random.Random(seed), 14)
    eager, eager_runner = make_engine(pair)
    recorder = Recorder()
    recorded, runner = make_engine(pair, recorder, async_scheduling=is_async)
    assert run(recorded, asked) == run(eager, asked)
    assert recorder.num_replays > 20
    assert recorder.num_recordings >= 3, "of several sizes"
    if not is_async:  # the same blocks then hold the same texts
        for ours, theirs in zip(runner.kv.layers, eager_runner.kv.layers, strict=True):
            torch.testing.assert_close(ours[:80], theirs, rtol=1e-4, atol=1e-4)
            assert ours[80, :, :, 1:].count_nonzero() == 0, "padding stays in one slot"


OF_FAMILIES = {
    "DeepseekV3": {
        "num_key_value_heads": 6,
        "q_lora_rank": 28,
        "kv_lora_rank": 20,
        "qk_nope_head_dim": 12,
        "qk_rope_head_dim": 8,
        "head_dim": 8,
        "v_head_dim": 10,
        "first_k_dense_replace": 1,
        "n_routed_experts": 8,
        "num_experts_per_tok": 3,
        "n_group": 4,
        "topk_group": 2,
        "moe_intermediate_size": 24,
    },
    "Qwen3Next": {
        "num_hidden_layers": 4,
        "mlp_only_layers": [0, 1, 2, 3],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 24,
    },
    "Mamba": {},
    "FalconH1": {
        "mamba_d_ssm": 64,
        "mamba_n_heads": 4,
        "mamba_n_groups": 2,
        "mamba_d_state": 24,
        "ssm_in_multiplier": 1.2,
    },
    "Lfm2": {"layer_types": ["conv", "full_attention"]},
}


@pytest.mark.skipif(native.library() is None, reason=str(native.missing()))
@pytest.mark.each_value
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "family", ["Llama", "Qwen2", "Qwen3", "Mistral", "Llama4", "HunYuanDenseV1", *OF_FAMILIES]
)
def test_recorded_calls_of_c_give_the_bits_of_eager_steps(family, dtype, monkeypatch):
    monkeypatch.setattr(step_graph, "SHORTEST_CONTEXT", 16)
    monkeypatch.setattr(rotary, "CHUNK", 8)  # the table moves under the recordings
    sizes = OF_FAMILIES.get(family, {})
    _, theirs, model_config = create_pair(family, random.randrange(1 << 30), **sizes)
    model = create_model(model_config, dtype=dtype)
    model.load_weights(named_weights(theirs))
    pair = (model, theirs, model_config)
    asked = requests(random, 14)
    eager, eager_runner = make_engine(pair)
    recorder = CountingNativeRecorder()
    recorded, runner = make_engine(pair, recorder)
    for _ in range(random.randrange(20)):
        recorded.use_idle_time()
    assert run(recorded, asked) == run(eager, asked)
    sizes = runner._graphs._graphs
    assert {size.has_prompts for size in sizes} == {False, True}
    assert not runner._graphs._broken
    assert len(recorder.made) == len(sizes) >= 3
    for ours, theirs in zip(runner.kv.layers, eager_runner.kv.layers, strict=True):
        assert torch.equal(ours[:80], theirs[:80])
    for layer, states in runner._recurrent.items():
        for ours, theirs in zip(states, eager_runner._recurrent[layer], strict=True):
            assert torch.equal(ours[:22], theirs)


class CountingNativeRecorder(NativeRecorder):
    def __init__(self):
        super().__init__()
        self.made = []

    def record(self, run):
        self.made.append(super().record(run))
        return self.made[-1]


def test_start_up_records_nothing(pair):
    recorder = Recorder()
    _, runner = make_engine(pair, recorder)
    runner.warm_up()
    assert recorder.num_recordings == 0


def test_serving_goes_on_when_recording_fails(pair):
    asked = requests(random.Random(3), 6)
    eager, _ = make_engine(pair)
    recorder = Recorder(torch.OutOfMemoryError("CUDA out of memory"))
    broken, _ = make_engine(pair, recorder)
    assert run(broken, asked) == run(eager, asked)
    assert recorder.num_recordings == 1


def test_a_thread_records_by_default(pair):
    asked = requests(random.Random(5), 6)
    eager, _ = make_engine(pair)
    recorder = Recorder()
    engine, _ = make_engine(pair, recorder, background=None)
    expected = run(eager, asked)
    for _ in range(200):
        assert run(engine, asked) == expected
        if recorder.num_replays:
            return
    raise AssertionError("the recordings were never used")


class FakeCuda:
    """Streams and recordings of `torch.cuda`, which note where what runs."""

    def __init__(self, monkeypatch):
        self.main = self.current = "main"
        self.num_streams = 0
        self.capturing = None
        self.notes = []
        cuda = self

        class Stream:
            def __init__(self, device):
                cuda.num_streams += 1
                self.device = device
                self.name = f"stream {cuda.num_streams}"

            def wait_stream(self, other):
                cuda.notes.append((self.name, f"waits for {other}"))

            def synchronize(self):
                cuda.notes.append((self.name, "synchronised"))

        class Graph:
            def capture_begin(self, pool, capture_error_mode):
                assert capture_error_mode == "thread_local"
                cuda.capturing = cuda.current

            def capture_end(self):
                cuda.capturing = None

            def replay(self):
                cuda.notes.append((cuda.current, "replays"))

        @contextlib.contextmanager
        def stream(one):
            before, cuda.current = cuda.current, one.name
            yield
            cuda.current = before

        for name, value in {
            "Stream": Stream,
            "CUDAGraph": Graph,
            "stream": stream,
            "current_stream": lambda device: cuda.current,
            "graph_pool_handle": lambda: "pool",
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)

    def run(self):
        what = "records" if self.capturing == self.current else "runs"
        self.notes.append((self.current, what))
        return torch.zeros(1)


def test_nothing_ever_runs_on_the_stream_that_graphs_are_recorded_on(monkeypatch):
    """Otherwise a rehearsal and a replay would work in the same memory of cuBLAS."""
    cuda = FakeCuda(monkeypatch)
    recorder = CudaRecorder(CPU)
    recordings = [recorder.record(cuda.run) for _ in range(40)]
    for recording in recordings:
        recording.replay()
    streams = {what: {s for s, w in cuda.notes if w == what} for _, what in cuda.notes}
    assert streams["replays"] == {"main"}
    assert len(streams["records"]) == len(streams["runs"]) == 1
    assert not streams["records"] & (streams["runs"] | streams["replays"])
    assert not streams["runs"] & streams["replays"]
    assert cuda.num_streams == 2, "torch hands out 32 streams in turn: more would come again"


def test_a_rehearsal_has_ended_before_its_recording_begins(monkeypatch):
    cuda = FakeCuda(monkeypatch)
    CudaRecorder(CPU).record(cuda.run)
    (rehearsal,) = {s for s, w in cuda.notes if w == "runs"}
    assert [what for _, what in cuda.notes] == [
        "waits for main",
        "runs",
        "synchronised",
        "records",
    ]
    assert cuda.notes[2] == (rehearsal, "synchronised")
