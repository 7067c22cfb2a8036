"""Records decode steps as CUDA graphs: `engine.llm.step_graph.Recorder`."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class CudaRecording:
    """A graph and the tensor that it writes."""

    graph: torch.cuda.CUDAGraph
    output: Tensor

    def replay(self) -> Tensor:
        """Launch the graph on the current stream; see `Recording.replay`."""
        self.graph.replay()
        return self.output


class CudaRecorder:
    """Records on streams of its own, while another thread goes on launching steps.

    All graphs share one memory pool: they never run at the same time.

    cuBLAS works in memory that belongs to a thread's stream, and a graph keeps writing to that of
    the stream it was recorded on, wherever it is replayed. So nothing may ever run on that stream:
    what runs for real, perhaps while a graph is replayed, has another one.
    """

    is_cheap = False

    def __init__(self, device: torch.device) -> None:
        self._rehearsing = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._recording = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def padded(self, num_rows: int) -> int:
        """1, 2, 4, 8, 16, 24, … : the next of these."""
        if num_rows <= 8:
            return 1 << (num_rows - 1).bit_length()
        return -(-num_rows // 8) * 8

    def padded_with_prompts(self, num_rows: int) -> int | None:
        """None: attention chooses its programs by the lengths of prompts."""
        return None

    def record(self, run: Callable[[], Tensor]) -> CudaRecording:
        """Capture `run`, after running it once for real; see `Recorder.record`."""
        self._rehearsing.wait_stream(torch.cuda.current_stream(self._rehearsing.device))
        with torch.cuda.stream(self._rehearsing):
            # For real first: it compiles kernels and sets libraries up for this thread, which a
            # recording must not.
            run()
        self._rehearsing.synchronize()
        with torch.cuda.stream(self._recording):
            graph = torch.cuda.CUDAGraph()
            # Only this thread is kept from what would break the recording, such as allocations.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                output = run()
            finally:
                graph.capture_end()
        return CudaRecording(graph, output)
