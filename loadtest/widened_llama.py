"""Makes a larger model that writes the same texts as a small one, to measure what drafts gain.

    python -m loadtest.widened_llama SOURCE TO [--adapter FOLDER]

SOURCE and TO are Hugging Face folders of a Llama; an adapter is merged first. The matrices get more
rows and columns, all of them zero, so the new model writes what the small one writes and takes the
time of its new size: SmolLM2-135M becomes a model of 1.2 B parameters. So the small model's drafts
are accepted as often as real texts allow, without the weights of a real large model.
"""

import argparse
import copy
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.initialization import no_init_weights

HIDDEN, INTERMEDIATE, HEADS, KV_HEADS = 2048, 4096, 32, 8


def widened(
    small: LlamaForCausalLM, hidden: int, intermediate: int, heads: int, kv_heads: int
) -> LlamaForCausalLM:
    """A model with the same logits, up to rounding, and the sizes that are given.

    Raises:
        ValueError: a size, or the number of query heads per head of keys and values, is smaller
            than the small model's.
    """
    config: LlamaConfig = small.config
    group, wide_group = config.num_attention_heads // config.num_key_value_heads, heads // kv_heads
    grown = [
        (config.hidden_size, hidden),
        (config.intermediate_size, intermediate),
        (config.num_key_value_heads, kv_heads),
        (group, wide_group),
    ]
    if any(old > new for old, new in grown):
        raise ValueError(f"sizes can only grow; from and to: {grown}")
    share = config.hidden_size / hidden
    wide_config = copy.deepcopy(config)
    wide_config.update(
        {
            "hidden_size": hidden,
            "intermediate_size": intermediate,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "rms_norm_eps": config.rms_norm_eps * share,
        }
    )
    # The query heads that share a head of keys and values must still share it.
    queries = torch.arange(heads * config.head_dim).view(kv_heads, wide_group, -1)
    queries = queries[: config.num_key_value_heads, :group].flatten()
    with no_init_weights():  # random numbers for all weights take longer than the rest
        wide = LlamaForCausalLM(wide_config)
    wide.tie_weights()
    places = wide.state_dict()
    for name, tensor in small.state_dict().items():
        place = places[name].zero_()
        if tensor.ndim == 1:
            # A norm divides by the mean square, which the new zeros make smaller.
            place[: len(tensor)] = tensor * share**0.5
        elif "q_proj" in name:
            place[queries, : tensor.shape[1]] = tensor
        elif "o_proj" in name:
            place[: tensor.shape[0], queries] = tensor
        else:
            place[: tensor.shape[0], : tensor.shape[1]] = tensor
    return wide


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.widened_llama",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("to", type=Path)
    parser.add_argument("--adapter", type=Path, help="a LoRA adapter in PEFT's format")
    options = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(options.source, dtype=torch.float32)
    if options.adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, options.adapter).merge_and_unload()
    wide = widened(model, HIDDEN, INTERMEDIATE, HEADS, KV_HEADS)
    wide.to(torch.bfloat16).save_pretrained(options.to)
    AutoTokenizer.from_pretrained(options.source).save_pretrained(options.to)


if __name__ == "__main__":
    main()
