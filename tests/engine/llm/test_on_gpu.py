"""Recorded, overlapped steps on a real GPU, against plain ones there."""

import random

import pytest
import torch

from engine.llm.decision import PENDING_TOKEN_ID, ScheduleDecision
from engine.llm.engine import LLMEngine
from engine.llm.runner.cuda_recorder import CudaRecorder
from engine.llm.runner.model_runner import ModelRunner
from engine.llm.runner.step_graph import AtOnce
from engine.llm.scheduler import Scheduler
from engine.models.registry import create_model
from tests.helpers.llm.recorder import requests, run
from tests.helpers.llm.steps import first_step, part, resolved
from tests.helpers.models.tiny_pairs import create_pair, named_weights

pytestmark = pytest.mark.gpu

FACTS = {
    "device": "cuda",
    "num_kv_blocks": 200,
    "max_num_seqs": 11,
    "max_num_batched_tokens": 40,
    "block_size": 16,
}


@pytest.fixture(scope="module")
def model():
    theirs, config = create_pair("Llama", 11)[1:]
    ours = create_model(config, dtype=torch.float32, device=torch.device("cuda"))
    ours.load_weights(named_weights(theirs))
    return ours, config


class CountingRecorder(CudaRecorder):
    num_replays = 0

    def record(self, run):
        recording = super().record(run)
        counter = self

        class Counted:
            def replay(self):
                counter.num_replays += 1
                return recording.replay()

        return Counted()


def make_runner(model, recorder=None, background=None, **facts):
    ours, config = model
    return ModelRunner(
        ours,
        config,
        resolved(**FACTS, **facts),
        torch.device("cuda"),
        recorder=recorder,
        background=background,
    )


def make_engine(model, runner, **facts):
    config = resolved(**FACTS, **facts)
    scheduler = Scheduler(config, eos_token_ids=(0,), vocab_size=model[1].vocab_size)
    return LLMEngine(scheduler, runner, config)


@pytest.mark.parametrize("in_thread", [False, True])
def test_recorded_overlapped_steps_say_what_plain_ones_say(model, in_thread):
    asked = requests(random.Random(20), 14)  # fixed, as in test_step_graph
    expected = run(make_engine(model, make_runner(model)), asked)
    recorder = CountingRecorder(torch.device("cuda"))
    runner = make_runner(model, recorder, None if in_thread else AtOnce())
    engine = make_engine(model, runner, async_scheduling=True)
    for _ in range(20):
        assert run(engine, asked) == expected
        if recorder.num_replays > 50:
            return
    raise AssertionError("the recordings were hardly used")


def test_the_host_does_not_wait_inside_a_decode_step(model):
    runner = make_runner(model)
    blocks = {i: list(range(10 * i, 10 * i + 10)) for i in range(3)}
    prompts = {i: [i + 1] * 5 for i in range(3)}
    steps = [runner.launch(first_step(prompts, blocks))]
    for step in range(6):
        decision = ScheduleDecision(
            scheduled=[
                part(i, [PENDING_TOKEN_ID], 5 + step, blocks[i], num_output=step + 1)
                for i in prompts
            ]
        )
        if step == 3:  # by then nothing is compiled or set up any more
            torch.cuda.set_sync_debug_mode("error")
        try:
            steps.append(runner.launch(decision))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for step in steps:
        assert all(o.token_ids for o in step.collect().outputs)
