"""Records decode steps as CUDA graphs, as an `engine.llm.runner.step_graph.Recorder`."""

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
    """Records on streams of its own, while another thread continues to launch steps.

    All graphs share one memory pool: they never run at the same time.

    cuBLAS uses a workspace that belongs to a thread's stream. A graph keeps writing to the
    workspace of the stream that it was recorded on, wherever it is replayed. Nothing else may
    therefore ever run on that stream: real runs, perhaps beside a replay, use another one.
    """

    is_cheap = False

    def __init__(self, device: torch.device) -> None:
        self._rehearsing = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._recording = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def padded(self, num_rows: int) -> int:
        """Round up to the next of 1, 2, 4, 8, 16, 24 and so on."""
        if num_rows <= 8:
            return 1 << (num_rows - 1).bit_length()
        return -(-num_rows // 8) * 8

    def padded_with_prompts(self, num_rows: int) -> int | None:
        """None, because attention chooses its programs by the lengths of prompts."""
        return None

    def record(self, run: Callable[[], Tensor]) -> CudaRecording:
        """Capture `run`, after running it once for real; see `Recorder.record`."""
        self._rehearsing.wait_stream(torch.cuda.current_stream(self._rehearsing.device))
        with torch.cuda.stream(self._rehearsing):
            # A real run first compiles kernels and sets up libraries for this thread, which a
            # recording must not do.
            run()
        self._rehearsing.synchronize()
        with torch.cuda.stream(self._recording):
            graph = torch.cuda.CUDAGraph()
            # Only this thread is barred from calls that would break the recording, such as
            # allocations.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                output = run()
            finally:
                graph.capture_end()
        return CudaRecording(graph, output)
