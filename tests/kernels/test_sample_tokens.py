"""The integer arithmetic under the sampler: thresholds at their edges, and who decides nothing."""

import random

import numpy as np
import pytest
import torch

from kernels import sample_tokens
from kernels.sample_tokens import (
    FINE,
    NO_TOKEN_LEFT,
    NOT_FINITE,
    EditLists,
    SamplingRows,
    noise,
    packed_row,
)
from kernels.sample_tokens.columns import COLUMNS, read_columns, read_steps
from kernels.sample_tokens.reference import (
    kept_weights,
    needed_mass,
    scaled_scores,
    scaled_weights,
    weight_unit,
)
from tests.helpers.kernels.sample_tokens_runs import RUNS

CPU = torch.device("cpu")


def knobs(**parameters):
    rows = SamplingRows.from_host([packed_row(**parameters)], [0], None, CPU)
    return rows.host_knobs()[0]


def logits_of(weights):
    """Logits whose weights at temperature 1 are near these."""
    return torch.tensor(weights, dtype=torch.float64).log().float()


def test_columns_hold_what_was_packed():
    rng = np.random.default_rng(random.getrandbits(64))
    for _ in range(20):
        values = {
            column.name: float(rng.normal())
            if column.is_float
            else int(rng.integers(-(2**63), 2**63))
            for column in COLUMNS
            if column.name not in ("temperature", "inverse_temperature")
        }
        packed = packed_row(**values, temperature=0.25)
        found = SamplingRows.from_host([packed], [values["position"]], None, CPU).host_knobs()
        assert found == [values | {"temperature": 0.25, "inverse_temperature": 4.0}], values


def test_parameters_that_are_left_out_or_unknown():
    neutral = {column.name: column.neutral for column in COLUMNS}
    assert knobs() == neutral
    assert knobs(top_k=10**30)["top_k"] == 2**63 - 1
    with pytest.raises(TypeError, match="no column for top_q"):
        packed_row(top_q=0.5)


@pytest.mark.parametrize(
    "line", ["COLUMN(float, a, 0.0)", " COLUMN(double, a, 0.0) COLUMN(double, b, 0.0)", "COLUMN(x)"]
)
def test_a_header_with_other_lines_is_not_guessed_at(line):
    with pytest.raises(ValueError, match="line of its own"):
        read_columns(f"COLUMN(double,  top_p, 1.0)\n{line}\n")


@pytest.mark.parametrize("line", ["STEP(top_p)", " STEP(a)", "STEP(a) LATE_STEP(b)", "STEP(1, a)"])
def test_nor_are_its_steps(line):
    with pytest.raises(ValueError, match="line of its own"):
        read_steps(f"// STEP(x)\nSTEP(top_p)\n{line}\n")


@pytest.mark.parametrize(
    ("top_p", "kept"), [(1e-300, 1), (0.49, 1), (0.51, 2), (0.74, 2), (0.76, 3), (1.0, 4)]
)
def test_nucleus_is_the_shortest_prefix(run, top_p, kept):
    logits = logits_of([0.125, 0.5, 0.125, 0.25]).unsqueeze(0)
    rows = SamplingRows.from_host([packed_row(top_p=top_p)], [0], None, CPU)
    assert run(logits, rows).num_kept.tolist() == [kept]


def test_a_nucleus_that_ends_exactly_at_a_token_ends_there(run):
    logits = torch.zeros(1, 64)
    rows = SamplingRows.from_host([packed_row(top_p=0.25)], [0], None, CPU)
    assert run(logits, rows).num_kept.tolist() == [16]
    assert kept_weights(logits[0], knobs(top_p=0.25)).nonzero().flatten().tolist() == [*range(16)]


def test_needed_mass_rounds_up_and_stays_within():
    assert needed_mass(0.51, 8) == 5
    assert needed_mass(1e-300, 1 << 61) == 1
    for total in (1, 3, (1 << 53) + 1, (1 << 62) - 1):
        for share in (0.5, 1.0 - 2.0**-53, 1.0):
            assert total // 2 <= needed_mass(share, total) <= total


def test_the_largest_totals_fit():
    for num_tokens in (1, 2, 3, 255, 256, (1 << 18) - 1):
        assert weight_unit(num_tokens) * num_tokens < 1 << 62
    weights = scaled_weights(torch.zeros(5), 5)
    assert weights.tolist() == [weight_unit(5)] * 5


def test_weights_are_precise_and_vanish_far_below_the_peak():
    scores = torch.linspace(-40, 0, 10_001)
    weights = scaled_weights(scores, 49_152).double() / weight_unit(49_152)
    expected = scores.double().exp()
    assert float((weights - expected).abs().max()) < 3e-7
    large = expected > 1e-6
    np.testing.assert_allclose(weights[large], expected[large], rtol=4e-7)
    far = scaled_scores(torch.tensor([-torch.inf, -3e38, 0.0]), torch.tensor(3e38), 1e5)
    assert scaled_weights(far, 49_152).tolist() == [0, 0, 0]


def test_top_k_of_ties_takes_the_lowest_ids(run):
    logits = torch.zeros(1, 300)
    logits[0, [7, 250]] = 1.0
    seen = set()
    for position in range(0, 60, 15):
        packed, positions = [packed_row(top_k=4)] * 15, [*range(position, position + 15)]
        rows = SamplingRows.from_host(packed, positions, None, CPU)
        result = run(logits.expand(15, -1).contiguous(), rows)
        assert result.num_kept.tolist() == [4] * 15
        seen.update(result.token_ids.tolist())
        if len(seen) == 4:
            break
    assert seen == {0, 1, 7, 250}


def test_a_later_cut_through_the_same_ties_keeps_the_earlier_one(run):
    logits = torch.zeros(1, 300)
    for parameters in (
        {"top_k": 20, "top_p": 0.999},
        {"top_k": 20, "typical_p": 0.9},
        {"top_k": 20, "top_p": 0.999, "min_p": 0.5, "typical_p": 0.9},
    ):
        rows = SamplingRows.from_host([packed_row(**parameters)], [0], None, CPU)
        assert run(logits, rows).num_kept.tolist() == [20], parameters


def test_every_implementation_draws_the_same_tokens(interpreted):
    seed = random.randrange(1 << 31)
    logits = 2 * torch.randn(8, 300)
    packed = [packed_row(seed=seed + i, top_p=(1.0, 0.9)[i % 2]) for i in range(8)]
    for position in range(3):
        rows = SamplingRows.from_host(packed, [position] * 8, None, CPU)
        drawn = {name: function(logits, rows).token_ids.tolist() for name, function in RUNS.items()}
        assert len({tuple(tokens) for tokens in drawn.values()}) == 1, drawn


def test_the_smallest_random_numbers_are_refined(run):
    """A word below 256, one in sixteen million, needs the second one; here the draw hangs on it."""
    key = {"seed": 5096, "index": 0, "position": 0}
    token, rival = 1493, 1400
    word = noise.token_words(2048, **key, more=0, device=CPU)[token]
    assert word < 256
    times = noise.exponentials(2048, **key, device=CPU).double()
    unrefined = (word.double() + 0.5) * 2.0**-32
    assert abs(times[token] / unrefined - 1) > 1e-4
    between = (times[token] + unrefined) / 2
    logits = torch.full((1, 2048), -torch.inf)
    logits[0, rival] = 0.0
    logits[0, token] = torch.log(between / times[rival])
    rows = SamplingRows.from_host([packed_row(seed=5096)], [0], None, CPU)
    expected = token if times[token] < between else rival
    assert run(logits, rows).token_ids.tolist() == [expected]


@pytest.mark.parametrize("name", ["all_kinds", "random_rows"])
def test_rows_are_what_they_are_alone(run, name):
    case = next(case for case in sample_tokens.cases.CASES if case.name == name)
    inputs = sample_tokens.cases.make_inputs(case, torch.float32, CPU)
    logits, rows = inputs["logits"], inputs["rows"]
    together = run(logits, rows)
    for _ in range(3):
        chosen = torch.randperm(len(logits))[: random.randrange(1, len(logits))]
        some = run(logits[chosen], SamplingRows(table=rows.table[chosen].contiguous()))
        assert torch.equal(some.token_ids, together.token_ids[chosen])
        assert torch.equal(some.num_kept, together.num_kept[chosen])


def test_errors_are_told_apart(run):
    logits = torch.randn(5, 40)
    logits[1, 39], logits[2, 0], logits[3] = torch.nan, torch.inf, -torch.inf
    edits = EditLists()
    edits.forbid(4, np.arange(40))
    edits.forbid(1, np.array([39]))  # hides the NaN, which must be reported all the same
    rows = SamplingRows.from_host([packed_row()] * 5, [0] * 5, edits, CPU)
    result = run(logits, rows)
    assert result.errors.tolist() == [FINE, NOT_FINITE, NOT_FINITE, NOT_FINITE, NO_TOKEN_LEFT]
    assert result.token_ids.tolist()[1:] == [0] * 4
    assert result.num_kept.tolist() == [40, 0, 0, 0, 0]


def test_edits_come_in_any_order_of_rows(run):
    logits = torch.zeros(3, 8)
    edits = EditLists()
    edits.add(2, np.array([5]), np.array([3.0]))
    edits.add(0, np.array([6]), np.array([4.0]))
    edits.forbid(1, np.array([0, 1]))
    edits.forbid(0, np.array([7]))
    edits.forbid(1, np.array([2]))
    rows = SamplingRows.from_host([packed_row(temperature=0)] * 3, [0] * 3, edits, CPU)
    assert run(logits, rows).token_ids.tolist() == [6, 3, 5]


def test_biases_of_a_row_add_up(run):
    edits = EditLists()
    edits.add(0, np.array([5, 2]), np.array([3.0, 1.0]))
    edits.add(0, np.array([3, 2]), np.array([3.5, 2.75]))
    rows = SamplingRows.from_host([packed_row(temperature=0)], [0], edits, CPU)
    assert run(torch.zeros(1, 8), rows).token_ids.tolist() == [2]
    assert edits.arrays(1)[4].tolist() == [2, 3, 5]
    assert edits.arrays(1)[5].tolist() == [3.75, 3.5, 3.0]


def test_least_probabilities_are_told_with_their_masses(run):
    logits = logits_of([0.5, 0.25, 0.125, 0.125]).expand(5, -1).contiguous()
    edits = EditLists()
    least = [0.2, 0.1, 1e-300, 1.0]
    for row, probability in enumerate(least):
        edits.leave_out_below(row, probability)
    assert edits.is_empty
    packed = [packed_row(seed=row) for row in range(5)]
    result = run(logits, SamplingRows.from_host(packed, [0] * 5, edits, CPU))
    assert result.num_kept.tolist() == [2, 4, 4, 1, 4]
    assert result.masses[4].tolist() == [0, 0]
    weights = scaled_weights(logits[0] - logits[0].max(), 4)
    for token_id, (mass, total), kept in zip(
        result.token_ids[:4].tolist(), result.masses.tolist(), [2, 4, 4, 1], strict=False
    ):
        assert mass == weights[token_id]
        assert total == weights[:kept].sum()


def test_masses_are_of_what_later_steps_leave_and_none_of_a_certain_token(run):
    edits = EditLists()
    for row in range(3):
        edits.leave_out_below(row, 0.001)
    edits.forbid(2, np.arange(4))
    xtc = {"xtc_probability": 1.0, "xtc_threshold": 0.2}
    packed = [packed_row(**xtc), packed_row(temperature=0.0), packed_row()]
    logits = logits_of([0.5, 0.25, 0.125, 0.125]).expand(3, -1).contiguous()
    result = run(logits, SamplingRows.from_host(packed, [0] * 3, edits, CPU))
    assert result.num_kept.tolist() == [3, 1, 0]
    total = int(scaled_weights(logits[0] - logits[0].max(), 4)[1:].sum())
    assert int(result.masses[0, 1]) == total
    assert result.masses[1:].tolist() == [[0, 0], [0, 0]]


def test_masks_of_a_row_are_joined(run):
    edits = EditLists()
    masks = np.array([[0b0110, 0], [0b1100, 0], [0b0001, 1 << 5]], dtype=np.int64)
    edits.allow(0, masks[2])
    edits.allow(1, masks[0])
    edits.allow(1, masks[1])
    rows = SamplingRows.from_host([packed_row()] * 2, [0, 0], edits, CPU)
    result = run(torch.zeros(2, 70), rows)
    assert result.token_ids[1] == 2
    assert result.num_kept.tolist() == [2, 1]
    assert masks.tolist() == [[0b0110, 0], [0b1100, 0], [0b0001, 1 << 5]]
