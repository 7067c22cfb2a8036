import random

import torch

from engine.llm.batch import build_batch
from engine.llm.decision import ScheduledSequence

CPU = torch.device("cpu")


def sequence(seq_id, token_ids, start, block_ids):
    return ScheduledSequence(seq_id, token_ids, start, block_ids, True, 0)


def test_single_rows_come_first_longest_context_first():
    batch = build_batch(
        [
            sequence(1, [10, 11, 12], 2, [7, 8]),
            sequence(2, [20], 0, [1]),
            sequence(3, [30], 9, [4, 5, 6]),
            sequence(4, [40, 41], 0, [9]),
        ],
        4,
        CPU,
    )
    assert [s.seq_id for s in batch.sequences] == [3, 2, 1, 4]
    assert batch.paged.num_decodes == 2
    assert batch.first_rows == [0, 1, 2, 5]
    assert batch.token_ids.tolist() == [30, 20, 10, 11, 12, 40, 41]
    assert batch.positions.tolist() == [9, 0, 2, 3, 4, 0, 1]
    assert batch.paged.context_lens.tolist() == [10, 1, 5, 2]
    assert batch.paged.cu_seqlens_q.tolist() == [0, 1, 2, 5, 7]
    assert batch.paged.block_tables.tolist() == [[4, 5, 6], [1, 1, 1], [7, 8, 7], [9, 9, 9]]
    assert [list(x) for x in zip(*(t.tolist() for t in batch.slot_mapping), strict=True)] == [
        [6, 1], [1, 0], [7, 2], [7, 3], [8, 0], [9, 0], [9, 1],
    ]  # fmt: skip


def test_blocks_beyond_the_context_are_left_out():
    batch = build_batch([sequence(1, [5], 3, [2, 3, 4, 5])], 4, CPU)
    assert batch.paged.block_tables.tolist() == [[2]]


def test_entered_blocks_are_those_begun_and_not_filled():
    cases = {
        "middle of a block": (sequence(1, [1], 5, [2, 3]), []),
        "first slot": (sequence(1, [1], 4, [2, 3]), [3]),
        "fills a block exactly": (sequence(1, [1] * 4, 4, [2, 3]), []),
        "spills over": (sequence(1, [1] * 4, 6, [2, 3, 4]), [4]),
        "whole prompt": (sequence(1, [1] * 9, 0, [2, 3, 4]), [4]),
        "ends at a border": (sequence(1, [1] * 8, 0, [2, 3]), []),
    }
    for name, (one, expected) in cases.items():
        assert build_batch([one], 4, CPU).entered_block_ids == expected, name


def test_random_batches_equal_a_plain_loop():
    seed = random.randrange(1 << 31)
    random.seed(seed)
    for _ in range(50):
        size = random.choice([1, 3, 16])
        sequences = []
        for seq_id in range(random.randint(1, 9)):
            start, num = random.randint(0, 40), random.choice([1, 1, random.randint(1, 30)])
            blocks = random.sample(range(1000), -(-(start + num) // size) + random.randint(0, 3))
            tokens = [random.randrange(9) for _ in range(num)]
            sequences.append(sequence(seq_id, tokens, start, blocks))
        batch = build_batch(sequences, size, CPU)
        rows = [
            (token, at, s.block_ids[at // size], at % size)
            for s in batch.sequences
            for at, token in enumerate(s.token_ids, s.start)
        ]
        found = zip(
            batch.token_ids.tolist(),
            batch.positions.tolist(),
            *(t.tolist() for t in batch.slot_mapping),
            strict=True,
        )
        assert list(found) == rows, f"seed {seed}"
        assert sorted(s.seq_id for s in batch.sequences) == list(range(len(sequences)))
