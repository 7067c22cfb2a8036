"""A tokenizer and text encoders made on the spot: CLIP's classes, tiny and random."""

from collections.abc import Callable

import pytest
import torch
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from tools.demo_image_model.tokenizer import write_tokenizer


@pytest.fixture(scope="session")
def clip_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def make_clip(
    clip_tokenizer: CLIPTokenizer,
) -> Callable[..., CLIPTextModel | CLIPTextModelWithProjection]:
    """`make_clip(seed, projection=False, **config)`: a random text encoder for the tokenizer."""

    def make(
        seed: int, *, projection: bool = False, **overrides: object
    ) -> CLIPTextModel | CLIPTextModelWithProjection:
        torch.manual_seed(seed)
        values = {
            "vocab_size": len(clip_tokenizer),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "projection_dim": 24,
            "max_position_embeddings": clip_tokenizer.model_max_length,
            "bos_token_id": clip_tokenizer.bos_token_id,
            "eos_token_id": clip_tokenizer.eos_token_id,
            "pad_token_id": clip_tokenizer.pad_token_id,
            **overrides,
        }
        model_class = CLIPTextModelWithProjection if projection else CLIPTextModel
        encoder = model_class(CLIPTextConfig(**values)).eval()
        with torch.no_grad():
            for parameter in encoder.parameters():  # the default initialisation is all but linear
                parameter.add_(torch.randn_like(parameter) * 0.2)
        return encoder

    return make
