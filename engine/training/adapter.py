"""The adapter that is trained: PEFT's, which makes and reads the files."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from engine.errors import InvalidParameter, ShapeMismatch
from engine.training.order import TrainingOrder


def peft_config(order: TrainingOrder, usual: str | Sequence[str], **options: Any) -> Any:
    """What PEFT is to add to a model.

    Args:
        usual: the layers that get an update where the order names none.
    """
    import peft

    targets = list(order.targets) or usual
    # PEFT computes with fractions of alpha, too, whatever its annotation says.
    scale: dict[str, Any] = {"r": order.rank, "lora_alpha": order.alpha, "target_modules": targets}
    return peft.LoraConfig(**scale, **options)


@contextmanager
def targets_found() -> Iterator[None]:
    """While PEFT looks for the layers.

    Raises:
        InvalidParameter: it has found none.
    """
    try:
        yield
    except ValueError as error:
        if "arget modules" not in str(error):
            raise
        raise InvalidParameter(
            "no linear layer of the model has such a name; give ends of names, such as q_proj",
            param="targets",
        ) from error


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The adapter's parameters."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def restore_adapter(model: nn.Module, file: Path, *, prefix: str = "") -> None:
    """Set an adapter to what was saved of it.

    Args:
        prefix: before the names in the file.

    Raises:
        ShapeMismatch: it was trained with another rank, or other layers.
    """
    import peft
    from safetensors.torch import load_file

    tensors = {name.removeprefix(prefix): tensor for name, tensor in load_file(file).items()}
    try:
        outcome: Any = peft.set_peft_model_state_dict(model, tensors)
    except RuntimeError as error:
        raise ShapeMismatch(
            "the checkpoint to go on from has another rank than what is asked for"
        ) from error
    missing = [name for name in outcome.missing_keys if "lora_" in name]
    if missing or outcome.unexpected_keys:
        raise ShapeMismatch("the checkpoint to go on from has other layers than the adapter")
