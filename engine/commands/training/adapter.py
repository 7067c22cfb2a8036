"""The trained adapter, which is PEFT's, as are the files that it writes and reads."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from engine.contract.orders import TrainingOrder
from engine.errors import InvalidParameter, ShapeMismatch


def peft_config(order: TrainingOrder, usual: str | Sequence[str], **options: Any) -> Any:
    """PEFT's configuration of the adapter.

    Args:
        usual: the layers that get an update if the order names none.
    """
    import peft

    targets = list(order.targets) or usual
    # PEFT also computes with fractional alpha, whatever its annotation says.
    scale: dict[str, Any] = {"r": order.rank, "lora_alpha": order.alpha, "target_modules": targets}
    return peft.LoraConfig(**scale, **options)


@contextmanager
def targets_found() -> Iterator[None]:
    """A context in which PEFT looks for the layers.

    Raises:
        InvalidParameter: it finds none.
    """
    try:
        yield
    except ValueError as error:
        if "arget modules" not in str(error):
            raise
        raise InvalidParameter(
            "targets match no linear layer of the model; give the ends of layer names, such as "
            "q_proj",
            param="targets",
        ) from error


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The adapter's parameters."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def restore_adapter(model: nn.Module, file: Path, *, prefix: str = "") -> None:
    """Load an adapter's saved weights.

    Args:
        prefix: the prefix of the names in the file.

    Raises:
        ShapeMismatch: it was trained with another rank or other layers.
    """
    import peft
    from safetensors.torch import load_file

    tensors = {name.removeprefix(prefix): tensor for name, tensor in load_file(file).items()}
    try:
        outcome: Any = peft.set_peft_model_state_dict(model, tensors)
    except RuntimeError as error:
        raise ShapeMismatch(
            "the checkpoint to resume from has another rank; give the rank that it was made with"
        ) from error
    missing = [name for name in outcome.missing_keys if "lora_" in name]
    if missing or outcome.unexpected_keys:
        raise ShapeMismatch(
            "the checkpoint to resume from has other layers; give the targets that it was made with"
        )
