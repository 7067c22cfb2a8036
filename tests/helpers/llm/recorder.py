"""A recorder without CUDA, and requests to record."""

from engine.contract.generate import GenerateRequest
from engine.contract.sampling_params import SamplingParams
from engine.llm.runner.cuda_recorder import CudaRecorder


class Rerun:
    """Replays by calling the function again. Its result is at one place, as a graph's is."""

    def __init__(self, recorder, run):
        self.recorder = recorder
        self.run = run
        self.output = run().clone()

    def replay(self):
        self.recorder.num_replays += 1
        return self.output.copy_(self.run())


class Recorder:
    is_cheap = False

    def __init__(self, failure=None):
        self.failure = failure
        self.num_replays = 0
        self.num_recordings = 0

    padded = CudaRecorder.padded
    padded_with_prompts = CudaRecorder.padded_with_prompts

    def record(self, run):
        self.num_recordings += 1
        if self.failure is not None:
            raise self.failure
        run()
        return Rerun(self, run)


def requests(rng, count):
    return [
        GenerateRequest(
            request_id=str(i),
            model="m",
            prompt_token_ids=[rng.randrange(131) for _ in range(rng.randrange(1, 20))],
            sampling=SamplingParams(
                temperature=0.8 * (i % 2), seed=i, max_tokens=rng.randrange(5, 40), n=1 + i % 2
            ),
        )
        for i in range(count)
    ]


def run(engine, asked):
    texts, asked = {}, list(asked)
    while asked or engine.has_work():
        if asked:
            engine.add(asked.pop())
        for event in engine.step()[0]:
            assert event.failure is None
            texts.setdefault((event.request_id, event.index), []).extend(event.token_ids)
    return texts
