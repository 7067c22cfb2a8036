"""Bodies of LM Studio's routes."""

from pydantic import Field

from server.protocol.common import MAX_TOKEN_COUNT
from server.protocol.model_loading import ChangeOrder


class LoadRequest(ChangeOrder):
    """Load a model, or wake it. LM Studio's settings of llama.cpp have no effect."""

    model: str = Field(min_length=1, max_length=4096, description="A `key` that the list has.")
    context_length: int | None = Field(
        None, ge=1, le=MAX_TOKEN_COUNT, description="`max_model_len` of a model that is loaded."
    )
    echo_load_config: bool | None = Field(
        None, description="Whether the answer has `load_config`. Default false."
    )
    eval_batch_size: int | None = Field(None, description="No effect.")
    flash_attention: bool | None = Field(None, description="No effect.")
    num_experts: int | None = Field(None, description="No effect.")
    offload_kv_cache_to_gpu: bool | None = Field(None, description="No effect.")


class UnloadRequest(ChangeOrder):
    """Free a model's memory. A request loads it again."""

    instance_id: str = Field(
        min_length=1, max_length=256, description="The `id` of a loaded instance: the model's id."
    )
