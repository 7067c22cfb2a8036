import random

import torch

from engine.llm.decision import PENDING_TOKEN_ID, GroupBlocks, SampleRow, ScheduledSequence
from engine.llm.runner.batch import BLOCK_IDS, TOKEN_IDS, Batch, lay_out
from engine.models.adapters import NO_ADAPTER

CPU = torch.device("cpu")


def sequence(seq_id, token_ids, start, block_ids):
    return ScheduledSequence(seq_id, token_ids, start, [GroupBlocks(block_ids)], 1, 0)


def test_single_rows_come_first_longest_context_first():
    rows = lay_out(
        [
            sequence(1, [10, 11, 12], 2, [7, 8]),
            sequence(2, [20], 0, [1]),
            sequence(3, [30], 9, [4, 5, 6]),
            sequence(4, [40, 41], 0, [9]),
        ],
        4,
    )
    assert [span.sequence.seq_id for span in rows.spans] == [3, 2, 1, 4]
    assert (rows.num_rows, rows.num_decodes) == (7, 2)
    assert rows.first_rows == [0, 1, 2, 5]
    assert rows.drawing_rows == [0, 1, 4, 6]
    batch = Batch.on(CPU, rows)
    [(paged, slot_mapping)] = batch.groups
    assert paged.num_decodes == 2
    assert batch.token_ids.tolist() == [30, 20, 10, 11, 12, 40, 41]
    assert batch.positions.tolist() == [9, 0, 2, 3, 4, 0, 1]
    assert paged.context_lens.tolist() == [10, 1, 5, 2]
    assert paged.cu_seqlens_q.tolist() == [0, 1, 2, 5, 7]
    assert paged.block_tables.tolist() == [[4, 5, 6], [1, 1, 1], [7, 8, 7], [9, 9, 9]]
    assert [list(x) for x in zip(*(t.tolist() for t in slot_mapping), strict=True)] == [
        [6, 1], [1, 0], [7, 2], [7, 3], [8, 0], [9, 0], [9, 1],
    ]  # fmt: skip


def test_blocks_beyond_the_context_are_left_out():
    rows = lay_out([sequence(1, [5], 3, [2, 3, 4, 5])], 4)
    assert rows.block_tables.tolist() == [[[2]]]


def test_each_group_has_its_own_blocks():
    long = ScheduledSequence(1, [5, 6], 10, [GroupBlocks([2, 3, 4]), GroupBlocks([7, 8], 1)], 1, 0)
    short = ScheduledSequence(2, [7], 3, [GroupBlocks([5]), GroupBlocks([9])], 1, 0)
    rows = lay_out([long, short], 4)
    # What a window has passed is filled up with a block that may be read.
    assert rows.block_tables.tolist() == [
        [[5, 5, 5], [2, 3, 4]],
        [[9, 9, 9], [7, 7, 8]],
    ]
    assert rows.inputs[TOKEN_IDS:BLOCK_IDS].tolist() == [[7, 5, 6], [3, 10, 11], [3, 2, 3]]
    assert rows.inputs[BLOCK_IDS:].tolist() == [[5, 4, 4], [9, 8, 8]]
    first, second = Batch.on(CPU, rows).groups
    assert first.batch.block_tables.tolist() == rows.block_tables[0].tolist()
    assert second.batch.block_tables.tolist() == rows.block_tables[1].tolist()
    assert [t.tolist() for t in second.slot_mapping] == [[9, 8, 8], [3, 2, 3]]
    assert first.batch.context_lens is second.batch.context_lens


def test_each_group_enters_blocks():
    blocks = [GroupBlocks([2, 3, 4]), GroupBlocks([6, 7], 1)]
    assert lay_out([ScheduledSequence(1, [1] * 4, 6, blocks, 1, 0)], 4).entered_block_ids == [
        4,
        7,
    ]


def test_pending_rows_are_named():
    pending = [sequence(i, [PENDING_TOKEN_ID], 3 * i, list(range(9))) for i in (1, 2)]
    rows = lay_out([sequence(0, [4, 5], 0, [1]), *pending, sequence(3, [7], 4, [1, 2])], 4)
    assert [rows.spans[row].sequence.seq_id for row in rows.pending_rows] == [2, 1]
    assert rows.inputs[TOKEN_IDS].tolist() == [PENDING_TOKEN_ID, 7, PENDING_TOKEN_ID, 4, 5]


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
        assert lay_out([one], 4).entered_block_ids == expected, name


def test_random_batches_equal_a_plain_loop():
    for _ in range(50):
        size = random.choice([1, 3, 16])
        sequences = []
        for seq_id in range(random.randint(1, 9)):
            start, num = random.randint(0, 40), random.choice([1, 1, random.randint(1, 30)])
            blocks = random.sample(range(1000), -(-(start + num) // size) + random.randint(0, 3))
            tokens = [random.randrange(9) for _ in range(num)]
            sequences.append(sequence(seq_id, tokens, start, blocks))
        rows = lay_out(sequences, size)
        batch = Batch.on(CPU, rows)
        expected = [
            (token, at, s.blocks[0].block_ids[at // size], at % size)
            for s, *_ in rows.spans
            for at, token in enumerate(s.token_ids, s.start)
        ]
        found = zip(
            batch.token_ids.tolist(),
            batch.positions.tolist(),
            *(t.tolist() for t in batch.groups[0].slot_mapping),
            strict=True,
        )
        assert list(found) == expected
        assert sorted(s.seq_id for s, *_ in rows.spans) == list(range(len(sequences)))


def test_a_decode_with_drafts_is_a_row_for_each_of_them():
    drafting = ScheduledSequence(4, [PENDING_TOKEN_ID, 8, 9], 3, [GroupBlocks([5, 6])], 3, 10)
    plain = ScheduledSequence(2, [7], 4, [GroupBlocks([1, 2])], 1, 20)
    rows = lay_out([drafting, plain], 4)
    assert rows.num_decodes == len(rows.spans) == 4
    assert rows.context_lens.tolist() == [6, 5, 5, 4]
    assert rows.inputs[TOKEN_IDS].tolist() == [9, 8, 7, PENDING_TOKEN_ID]
    assert [rows.spans[row].sequence.seq_id for row in rows.pending_rows] == [4]
    assert rows.block_tables.tolist() == [[[5, 6], [5, 6], [1, 2], [5, 5]]]
    assert rows.entered_block_ids == [6, 2]
    assert rows.drawing_rows == [2, 3, 1, 0]
    assert rows.draws == [
        SampleRow(2, 20),
        SampleRow(4, 10),
        SampleRow(4, 11, draft=8),
        SampleRow(4, 12, draft=9),
    ]


def test_a_chunk_may_draw_at_some_of_its_rows():
    chunk = ScheduledSequence(1, [5, 6, 7, 8], 2, [GroupBlocks([3, 4])], 2, 0)
    rows = lay_out([chunk], 4)
    assert rows.first_rows == [0]
    assert rows.drawing_rows == [2, 3]
    assert rows.draws == [SampleRow(1, 0), SampleRow(1, 1, draft=8)]


def test_rows_have_their_sequences_adapters():
    chunk, plain = sequence(1, [5, 6, 7], 0, [3]), sequence(2, [8], 5, [1, 2])
    drafting = ScheduledSequence(4, [9, 8], 3, [GroupBlocks([5, 6])], 2, 10)
    rows = lay_out([chunk, plain, drafting], 4, {1: 3, 4: 0, 77: 5})
    assert [span.sequence.seq_id for span in rows.spans] == [2, 4, 4, 1]
    assert rows.adapter_slots.tolist() == [NO_ADAPTER, 0, 0, 3, 3, 3]
    assert Batch.on(CPU, rows).adapter_slots.dtype is torch.int32
    without = lay_out([plain], 4, {1: 3, 77: 5})
    assert without.adapter_slots is None
    assert Batch.on(CPU, without).adapter_slots is None
