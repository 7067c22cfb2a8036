"""Trains a language model on texts: transformers' class of it with PEFT's LoRA."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.commands.training.adapter import peft_config, restore_adapter, trainable
from engine.commands.training.text_data import TextExample, TextReader
from engine.contract.orders import TrainingOrder
from engine.errors import UnsupportedFeature
from engine.text.tokenizer import Tokenizer, load_tokenizer
from engine.weights.source import Checkpoint

IGNORED = -100
"""transformers' label of tokens that are not learned."""
SAMPLE_TOKENS = 64


class TextLearner:
    """The learner of text models (`engine.commands.training.loop.Learner`).

    Args:
        model: a model with an adapter of PEFT.
        examples: the examples from which each step draws some.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        examples: Sequence[TextExample],
        order: TrainingOrder,
    ) -> None:
        self._model: Any = model
        self._tokenizer = tokenizer
        self._examples = examples
        self._order = order

    @property
    def parameters(self) -> list[nn.Parameter]:
        return trainable(self._model)

    def loss(self, draws: torch.Generator) -> Tensor:
        """The mean surprise of the learned tokens, in nats."""
        picked = torch.randint(len(self._examples), (self._order.batch_size,), generator=draws)
        token_ids, labels, mask = padded([self._examples[i] for i in picked.tolist()])
        self._model.train()
        loss: Tensor = self._model(input_ids=token_ids, attention_mask=mask, labels=labels).loss
        return loss

    def save(self, folder: Path) -> None:
        self._model.peft_config["default"].base_model_name_or_path = self._order.model
        # Without this argument PEFT looks for the base's configuration on the hub.
        self._model.save_pretrained(folder, save_embedding_layers=False)
        # PEFT's model card is an empty form.
        (folder / "README.md").unlink(missing_ok=True)

    def restore(self, folder: Path) -> None:
        restore_adapter(self._model, folder / "adapter_model.safetensors")

    def sample(self, folder: Path, step: int) -> None:
        """Write greedy answers into a text file."""
        folder.mkdir(parents=True, exist_ok=True)
        self._model.eval()
        lines = []
        reader = TextReader(self._tokenizer, self._order.max_length)
        for prompt in self._order.sample_prompts:
            token_ids = reader.question(prompt)
            answer = self._model.generate(
                input_ids=torch.tensor([token_ids]),
                attention_mask=torch.ones(1, len(token_ids), dtype=torch.long),
                max_new_tokens=SAMPLE_TOKENS,
                do_sample=False,
                pad_token_id=0,
                eos_token_id=list(self._tokenizer.eos_token_ids) or None,
            )[0, len(token_ids) :]
            lines.append(f"{prompt}\n→ {self._tokenizer.decode(answer.tolist())}\n")
        (folder / f"step-{step:08d}.txt").write_text("\n".join(lines), encoding="utf-8")


def padded(examples: Sequence[TextExample]) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, labels and mask, [B, T] int64 each, of texts that are padded on the right."""
    longest = max(len(example.token_ids) for example in examples)
    token_ids = torch.zeros(len(examples), longest, dtype=torch.long)
    labels = torch.full_like(token_ids, IGNORED)
    mask = torch.zeros_like(token_ids)
    for row, example in enumerate(examples):
        size = len(example.token_ids)
        token_ids[row, :size] = torch.tensor(example.token_ids)
        labels[row, example.first_learned : size] = token_ids[row, example.first_learned : size]
        mask[row, :size] = 1
    return token_ids, labels, mask


def text_config(checkpoint: Checkpoint) -> Any:
    """transformers' configuration of a model.

    Raises:
        UnsupportedFeature: transformers cannot read it.
    """
    import transformers

    path, options = _place(checkpoint)
    with _understood():
        return transformers.AutoConfig.from_pretrained(path, **options)


def load_text_model(checkpoint: Checkpoint, dtype: torch.dtype) -> nn.Module:
    """transformers' model with unpacked weights.

    Raises:
        UnsupportedFeature: transformers cannot read it.
    """
    import transformers

    path, options = _place(checkpoint)
    transformers.utils.logging.disable_progress_bar()
    if "gguf_file" in options:
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    with _understood():
        model: nn.Module = transformers.AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, **options
        )
    return model


def _place(checkpoint: Checkpoint) -> tuple[Path, dict[str, Any]]:
    """The path and options with which transformers loads a checkpoint."""
    path = checkpoint.path
    options: dict[str, Any] = {"local_files_only": True}
    if path.is_file():
        return path.parent, options | {"gguf_file": path.name}
    return path, options


@contextmanager
def _understood() -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, OSError, ImportError) as error:
        raise UnsupportedFeature(
            f"transformers cannot load the model for training: {error}; give a folder of plain "
            f"safetensors"
        ) from error


def load_text_learner(checkpoint: Checkpoint, order: TrainingOrder) -> tuple[TextLearner, int]:
    """Load a text model for training; returns the learner and the number of cut examples.

    Raises:
        InvalidParameter: the data is wrong. UnsupportedFeature: the model cannot be trained.
    """
    import peft

    tokenizer = load_tokenizer(checkpoint.path)
    data = TextReader(tokenizer, order.max_length).read(order.data)
    model: Any = load_text_model(checkpoint, getattr(torch, order.precision))
    model.config.use_cache = False
    torch.manual_seed(order.seed)
    adapted = peft.get_peft_model(model, peft_config(order, "all-linear", task_type="CAUSAL_LM"))
    return TextLearner(adapted, tokenizer, data.examples, order), data.num_cut
