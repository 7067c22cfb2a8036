"""The runner over tiny random models: decisions in, tokens out, trouble contained."""

import random

import pytest
import torch

from engine.errors import InsufficientMemory, ModelLoadError
from engine.llm.decision import PENDING_TOKEN_ID, ScheduleDecision
from engine.llm.runner import model_runner
from engine.llm.runner.model_runner import ModelRunner
from tests.helpers.llm.steps import CPU, first_step, new, part, resolved
from tests.helpers.models.tiny_pairs import create_pair, their_logits


@pytest.fixture(scope="module")
def pair():
    return create_pair("Llama", 11)


@pytest.fixture
def runner(pair):
    ours, _, config = pair
    return ModelRunner(ours, config, resolved(), CPU)


def random_prompt(length):
    return [random.randrange(131) for _ in range(length)]


def greedy_continuation(theirs, prompt, length):
    text = list(prompt)
    for _ in range(length):
        text.append(int(their_logits(theirs, text)[-1].argmax()))
    return text[len(prompt) :]


def test_greedy_text_equals_transformers_and_outputs_keep_the_decisions_order(pair, runner):
    prompts = {1: random_prompt(6), 2: random_prompt(23), 3: random_prompt(1)}
    blocks = {1: list(range(10)), 2: list(range(20, 34)), 3: list(range(40, 50))}
    expected = {i: greedy_continuation(pair[1], p, 12) for i, p in prompts.items()}
    decision = first_step(prompts, blocks)
    found = {i: [] for i in prompts}
    for step in range(12):
        output = runner.execute(decision)
        assert [o.seq_id for o in output.outputs] == [s.seq_id for s in decision.scheduled]
        assert output.forward_time_s > 0
        assert output.sample_time_s > 0
        for one in output.outputs:
            found[one.seq_id] += one.token_ids
        order = random.sample(sorted(prompts), 3)
        decision = ScheduleDecision(
            scheduled=[
                part(i, found[i][-1:], len(prompts[i]) + step, blocks[i], num_output=step + 1)
                for i in order
            ]
        )
    assert found == expected


@pytest.mark.parametrize("is_right", [0.0, 0.7, 1.0])
def test_drafts_bring_what_would_have_come_anyway(pair, runner, is_right):
    length = 24
    prompts = {1: random_prompt(5), 2: random_prompt(18), 0: random_prompt(11)}
    blocks = {i: list(range(16 * i, 16 * i + 16)) for i in prompts}
    expected = {i: greedy_continuation(pair[1], p, length + 8) for i, p in prompts.items()}
    found = {i: [] for i in prompts}
    decision = first_step(prompts, blocks, logprobs=0)
    scores = {i: [] for i in prompts}
    num_steps = 0
    while decision.scheduled:
        num_steps += 1
        for one in runner.execute(decision).outputs:
            found[one.seq_id] += one.token_ids
            scores[one.seq_id] += one.logprobs
        decision = ScheduleDecision()
        for i, tokens in found.items():
            if len(tokens) < length:
                drafts = expected[i][len(tokens) : len(tokens) + random.randrange(6)]
                drafts = [t if random.random() < is_right else (t + 1) % 131 for t in drafts]
                start = len(prompts[i]) + len(tokens) - 1
                how = {"num_draws": 1 + len(drafts), "num_output": len(tokens)}
                decision.scheduled.append(part(i, [tokens[-1], *drafts], start, blocks[i], **how))
    for i in prompts:
        assert found[i] == expected[i][: len(found[i])]
        assert [score.token_id for score in scores[i]] == found[i]
    assert (num_steps < length) == (is_right > 0)


def test_drafts_may_follow_a_token_that_nobody_knows_yet(pair, runner):
    prompt, blocks = random_prompt(7), [3, 1, 2, 5]
    expected = greedy_continuation(pair[1], prompt, 5)
    first = runner.launch(first_step({1: prompt}, {1: blocks}))
    drafts = [*expected[1:3], (expected[3] + 1) % 131]
    second = runner.launch(
        ScheduleDecision(
            scheduled=[part(1, [PENDING_TOKEN_ID, *drafts], 7, blocks, num_draws=4, num_output=1)]
        )
    )
    assert first.collect().outputs[0].token_ids == expected[:1]
    assert second.collect().outputs[0].token_ids == expected[1:4]


def test_a_step_starts_from_tokens_that_the_last_one_drew(pair, runner):
    prompts = {1: random_prompt(6), 2: random_prompt(3), 3: random_prompt(9), 4: random_prompt(20)}
    blocks = {i: list(range(10 * i, 10 * i + 9)) for i in prompts}
    steps = [
        runner.launch(
            ScheduleDecision(
                new=[new(i, p) for i, p in prompts.items()],
                scheduled=[part(i, prompts[i], 0, blocks[i]) for i in (1, 2, 3)],
            )
        )
    ]
    for step in range(5):
        order = random.sample((1, 2, 3), 3)
        decoded = [
            part(i, [PENDING_TOKEN_ID], len(prompts[i]) + step, blocks[i], num_output=step + 1)
            for i in order
        ]
        chunk = part(
            4, prompts[4][4 * step : 4 * step + 4], 4 * step, blocks[4], num_draws=step == 4
        )
        steps.append(runner.launch(ScheduleDecision(scheduled=[chunk, *decoded])))
    found = {i: [] for i in prompts}
    for launched in steps:
        for one in launched.collect().outputs:
            found[one.seq_id] += one.token_ids
    for i, prompt in prompts.items():
        assert found[i] == greedy_continuation(pair[1], prompt, 1 if i == 4 else 6)


READS = ("tolist", "item", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__float__")
"""Methods of a tensor that, on a GPU, wait for all that was launched."""


def test_launching_a_decode_step_reads_no_tensor(runner, monkeypatch):
    prompts = {i: random_prompt(5) for i in range(4)}
    sampling = [
        {},
        {"temperature": 0.8, "top_p": 0.9, "logit_bias": {3: 1.0}},
        {"temperature": 1.2, "top_k": 5, "min_tokens": 9},
        {"temperature": 1.0, "logprobs": 2},
    ]
    first = runner.launch(
        ScheduleDecision(
            new=[new(i, p, **sampling[i]) for i, p in prompts.items()],
            scheduled=[part(i, p, 0, [3 * i, 3 * i + 1]) for i, p in prompts.items()],
        )
    )
    decodes = [part(i, [PENDING_TOKEN_ID], 5, [3 * i, 3 * i + 1], num_output=1) for i in prompts]

    def refuse(*_):
        raise AssertionError("the host waits for the device")

    with monkeypatch.context() as patched:
        for name in READS:
            patched.setattr(torch.Tensor, name, refuse)
        second = runner.launch(ScheduleDecision(scheduled=decodes))
    for step in (first, second):
        assert all(one.token_ids for one in step.collect().outputs)


def test_only_sequences_that_sample_get_tokens(pair, runner):
    prompt = random_prompt(20)
    output = runner.execute(
        ScheduleDecision(
            new=[new(1, prompt), new(2, prompt[:5])],
            scheduled=[
                part(1, prompt[:13], 0, [1, 2, 3, 4, 5], num_draws=0),
                part(2, prompt[:5], 0, [6, 7]),
            ],
        )
    )
    assert [len(o.token_ids) for o in output.outputs] == [0, 1]
    output = runner.execute(ScheduleDecision(scheduled=[part(1, prompt[13:], 13, [1, 2, 3, 4, 5])]))
    assert output.outputs[0].token_ids == greedy_continuation(pair[1], prompt, 1)


def test_a_step_in_which_nobody_samples(runner):
    output = runner.execute(
        ScheduleDecision(new=[new(1, [1, 2, 3])], scheduled=[part(1, [1, 2], 0, [0], num_draws=0)])
    )
    assert [(o.seq_id, o.token_ids, o.error) for o in output.outputs] == [(1, [], None)]


def test_a_decision_without_rows_only_changes_state(runner):
    assert runner.execute(ScheduleDecision(new=[new(1, [1])])).outputs == []
    assert runner.execute(ScheduleDecision(finished=[1, 77])).outputs == []
    assert runner.kv_bytes_committed == 0


def test_logprobs_come_with_the_token(pair, runner):
    prompt = random_prompt(9)
    [output] = runner.execute(first_step({1: prompt}, {1: [0, 1, 2]}, logprobs=3)).outputs
    expected = their_logits(pair[1], prompt)[-1].log_softmax(-1)
    score = output.logprobs[0]
    assert score.token_id == output.token_ids[0] == int(expected.argmax())
    assert score.logprob == pytest.approx(expected.max().item(), abs=1e-4)
    assert score.top_ids == expected.topk(3).indices.tolist()


@pytest.mark.parametrize("sizes", [[30], [7, 1, 22], [29, 1], [1] * 30])
@pytest.mark.parametrize("scored_rows", [128, 4])
def test_prompt_scores_equal_transformers_whatever_the_chunks(
    pair, runner, monkeypatch, sizes, scored_rows
):
    monkeypatch.setattr(model_runner, "SCORED_ROWS", scored_rows)
    prompt = random_prompt(30)
    blocks = list(range(8))
    sequence = new(1, prompt, prompt_logprobs=2)
    found, start = [], 0
    for size in sizes:
        end = start + size
        chunk = part(1, prompt[start:end], start, blocks, num_draws=end == 30, score=True)
        decision = ScheduleDecision(new=[sequence] * (start == 0), scheduled=[chunk])
        found += runner.execute(decision).outputs[0].prompt_logprobs
        start = end
    expected = their_logits(pair[1], prompt).log_softmax(-1)
    assert [s.token_id for s in found] == prompt[1:]
    for row, score in enumerate(found):
        assert score.logprob == pytest.approx(expected[row, prompt[row + 1]].item(), abs=1e-4)
        assert len(score.top_ids) == 2


def test_a_decoded_token_has_no_prompt_score(runner):
    runner.execute(first_step({1: [1, 2]}, {1: [0]}, prompt_logprobs=0))
    output = runner.execute(
        ScheduleDecision(scheduled=[part(1, [9], 2, [0], num_output=1, score=True)])
    )
    assert output.outputs[0].prompt_logprobs == []


def test_copied_blocks_continue_like_their_source(pair, runner):
    prompt = random_prompt(6)
    first = runner.execute(
        ScheduleDecision(
            new=[new(1, prompt), new(2, prompt)], scheduled=[part(1, prompt, 0, [0, 1])]
        )
    ).outputs[0]
    token = first.token_ids[0]
    # Sequence 2 shares the full block and writes on in its own copy of the other one.
    output = runner.execute(
        ScheduleDecision(
            copies=[(1, 5)],
            scheduled=[
                part(1, [token], 6, [0, 1], num_output=1),
                part(2, [(token + 1) % 131], 6, [0, 5], num_output=1),
            ],
        )
    )
    for one, second in zip(output.outputs, (token, (token + 1) % 131), strict=True):
        assert one.token_ids == greedy_continuation(pair[1], [*prompt, second], 1)


class Broken(torch.nn.Module):
    """The model, until told to fail or to make some rows' hidden states NaN."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.options = model.options
        self.picture_encoder = None
        self.poison = lambda token_ids: torch.zeros_like(token_ids, dtype=torch.bool)
        self.failure = None

    def forward(self, token_ids, positions, ctx):
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        hidden = self.model.forward(token_ids, positions, ctx)
        hidden[self.poison(token_ids)] = torch.nan
        return hidden

    def compute_logits(self, hidden, adapters=None):
        return self.model.compute_logits(hidden, adapters)


@pytest.fixture
def broken(pair):
    ours, _, config = pair
    model = Broken(ours)
    return model, ModelRunner(model, config, resolved(), CPU)


def test_a_row_with_nan_fails_alone(pair, broken):
    model, runner = broken
    model.poison = lambda token_ids: token_ids == 13
    prompts = {1: [5, 6, 7], 2: [4, 4, 13], 3: [9], 4: [13, 2]}
    output = runner.execute(
        ScheduleDecision(
            new=[new(i, p, prompt_logprobs=0) for i, p in prompts.items()],
            scheduled=[part(i, p, 0, [i], score=i == 4) for i, p in prompts.items()],
        )
    )
    assert [o.error is None for o in output.outputs] == [True, False, True, False]
    assert "non-finite" in output.outputs[1].error
    assert "non-finite" in output.outputs[3].error
    for one in (output.outputs[0], output.outputs[2]):
        assert one.token_ids == greedy_continuation(pair[1], prompts[one.seq_id], 1)


def test_nan_left_in_freed_blocks_does_not_reach_their_next_owner(pair, runner):
    prompt = random_prompt(7)
    runner.kv._pool.fill_(torch.nan)
    runner.kv._written[:] = True
    text, expected = [], greedy_continuation(pair[1], prompt, 10)
    decision = first_step({1: prompt}, {1: [3, 1, 4, 5, 9]})
    for step in range(10):
        text += runner.execute(decision).outputs[0].token_ids
        decision = ScheduleDecision(
            scheduled=[part(1, text[-1:], 7 + step, [3, 1, 4, 5, 9], num_output=step + 1)]
        )
    assert text == expected


def test_failures_pass_through_and_leave_the_state_as_it_was(pair, broken):
    model, runner = broken
    prompt = random_prompt(9)
    decision = first_step({1: prompt}, {1: [0, 1, 2]}, temperature=1.0)
    model.failure = RuntimeError("illegal instruction")
    with pytest.raises(RuntimeError, match="illegal instruction"):
        runner.execute(decision)
    decision.new = []
    after_failure = runner.execute(decision).outputs[0].token_ids
    untouched = ModelRunner(pair[0], pair[2], resolved(), CPU)
    decision.new = [new(1, prompt, temperature=1.0)]
    assert untouched.execute(decision).outputs[0].token_ids == after_failure


def test_warm_up_changes_nothing_that_shows(pair):
    ours, theirs, config = pair
    runner = ModelRunner(ours, config, resolved(max_num_seqs=3, max_num_batched_tokens=5), CPU)
    runner.warm_up()
    assert runner.kv_bytes_committed <= runner.kv._block_bytes
    prompt = random_prompt(5)
    [output] = runner.execute(first_step({1: prompt}, {1: [0, 1]})).outputs
    assert output.token_ids == greedy_continuation(theirs, prompt, 1)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_warm_up_finds_weights_that_give_no_numbers(value):
    ours, _, config = create_pair("Llama", 12)
    with torch.inference_mode():
        ours.model.norm.weight[0] = value
    runner = ModelRunner(ours, config, resolved(), CPU)
    with pytest.raises(ModelLoadError, match=r"a trial step failed: .*fetch the model again"):
        runner.warm_up()


def test_warm_up_finds_that_memory_does_not_suffice(broken):
    model, runner = broken
    model.failure = torch.OutOfMemoryError("no memory")
    with pytest.raises(InsufficientMemory, match="more memory"):
        runner.warm_up()


def test_memory_is_counted_as_blocks_are_written(runner):
    assert runner.kv_bytes_committed == 0
    runner.launch(first_step({1: [1] * 9}, {1: [7, 3, 60]}))
    assert runner.kv_bytes_committed == 3 * runner.kv._block_bytes


def test_a_long_and_many_short_contexts_in_one_step(pair, runner):
    """Their decodes cannot share one padded gather."""
    prompts = {1: random_prompt(120)} | {i: random_prompt(i) for i in range(2, 8)}
    blocks = {1: list(range(30))} | {i: [30 + 3 * i + k for k in range(3)] for i in range(2, 8)}
    for i, prompt in prompts.items():
        for start in range(0, len(prompt) - 1, 60):
            chunk = prompt[start : min(start + 60, len(prompt) - 1)]
            runner.execute(
                ScheduleDecision(
                    new=[new(i, prompt)] * (start == 0),
                    scheduled=[part(i, chunk, start, blocks[i], num_draws=0)],
                )
            )
    output = runner.execute(
        ScheduleDecision(
            scheduled=[part(i, p[-1:], len(p) - 1, blocks[i]) for i, p in prompts.items()]
        )
    )
    for one in output.outputs:
        assert one.token_ids == greedy_continuation(pair[1], prompts[one.seq_id], 1)
