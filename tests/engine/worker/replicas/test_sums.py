"""What several workers are together."""

from engine.contract.draw import ImageStats
from engine.contract.embed import EmbeddingStats
from engine.contract.generate import DraftCounts, EngineStats, KvStoreCounts
from engine.worker.replicas.sums import sum_of


def test_numbers_add_up_and_sizes_do_not():
    one = EngineStats(
        num_running=2,
        kv_blocks_total=100,
        kv_blocks_used=30,
        kv_block_size=16,
        step_measured_s=0.25,
        drafts={"lookup": DraftCounts(num_drafts=3)},
        kv_store=KvStoreCounts(num_blocks_read=5),
        embedding=EmbeddingStats(num_tokens=7),
    )
    other = EngineStats(
        num_running=3,
        kv_blocks_total=100,
        kv_blocks_used=40,
        kv_block_size=16,
        step_measured_s=0.5,
        drafts={"lookup": DraftCounts(num_drafts=4), "model": DraftCounts(num_drafts=1)},
        kv_store=KvStoreCounts(num_blocks_read=6),
    )
    assert sum_of([one, other]) == EngineStats(
        num_running=5,
        kv_blocks_total=200,
        kv_blocks_used=70,
        kv_block_size=16,
        step_measured_s=0.5,
        drafts={"lookup": DraftCounts(num_drafts=7), "model": DraftCounts(num_drafts=1)},
        kv_store=KvStoreCounts(num_blocks_read=11),
        embedding=EmbeddingStats(num_tokens=7),
    )


def test_one_is_itself_and_none_is_none():
    images = ImageStats(num_running=1)
    assert sum_of([images]) is images
    assert sum_of([]) is None
