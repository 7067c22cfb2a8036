"""Builds a component with the quantised linear layers of its files."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from accelerate import init_empty_weights
from diffusers import ModelMixin
from torch import Tensor, nn

from engine.diffusion.families.components import check_component
from engine.diffusion.families.options import LoadOptions
from engine.errors import MissingWeight, ModelLoadError, ShapeMismatch
from engine.files.checkpoint_files import read_json
from engine.quantization.format import QuantizedLayer
from engine.quantization.method import LinearPart, TensorSpec

Component = TypeVar("Component", bound=ModelMixin)


def load_packed(
    model: type[Component],
    folder: Path,
    tensors: Iterable[tuple[str, Tensor]],
    layers: Mapping[str, QuantizedLayer],
    options: LoadOptions,
) -> Component:
    """Build a model with the shape in `config.json` of `folder`.

    Args:
        tensors: its tensors by name, which may be views of mapped files.
        layers: the quantised layers by their path in the model; there may be none.

    Returns:
        The model, with quantised layers on the device and the rest on the CPU.

    Raises:
        MissingWeight, ShapeMismatch, CorruptFile: the files are incomplete or damaged; the message
            names the tensor.
        ModelLoadError: it cannot be built.
    """
    check_component(folder)
    built = empty_component(model, read_json(folder / "config.json"))
    waiting = _Waiting(built, layers, options)
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors:
        if not waiting.take(name, tensor):
            plain[name] = tensor.to(options.dtype, copy=True)
    waiting.check()
    _fill(built, plain)
    built.is_quantized = bool(layers)
    built.requires_grad_(False)
    built.eval()
    return built


class _Waiting:
    """Quantised layers that still lack tensors; each is put in its place when it is complete."""

    def __init__(
        self, model: nn.Module, layers: Mapping[str, QuantizedLayer], options: LoadOptions
    ) -> None:
        self._model = model
        self._layers = layers
        self._parts: dict[str, LinearPart] = {}
        self._missing: dict[str, dict[str, TensorSpec]] = {}
        self._places: dict[str, tuple[str, str]] = {}
        """The layer's path and the kind of each tensor, by the tensor's name."""
        for path, layer in layers.items():
            plain = _linear(model, path, layer)
            part = self._parts[path] = LinearPart(
                names=(path,),
                in_features=layer.in_features,
                out_features=(layer.out_features,),
                has_bias=plain.bias is not None,
                dtype=options.dtype,
                device=options.device,
            )
            sizes = (layer.in_features, layer.out_features, part.has_bias)
            specs = self._missing[path] = layer.method.tensors(*sizes)
            self._places |= {f"{path}.{kind}": (path, kind) for kind in specs}

    def take(self, name: str, tensor: Tensor) -> bool:
        """Take a tensor of a quantised layer. Returns False for other tensors."""
        if name not in self._places:
            return False
        path, kind = self._places.pop(name)
        missing = self._missing[path]
        missing.pop(kind).check(name, tensor)
        part = self._parts[path]
        part.take(0, kind, tensor)
        if not missing:
            self._model.set_submodule(path, self._layers[path].module(part))
        return True

    def check(self) -> None:
        """Check that all layers are complete.

        Raises:
            MissingWeight: a tensor is missing; the message names the first.
        """
        for path, kinds in self._missing.items():
            for kind in kinds:
                raise MissingWeight(f"the component lacks {path}.{kind}; fetch it again")


def empty_component(model: type[Component], config: dict[str, Any]) -> Component:
    """Build a model without memory for its weights.

    Raises:
        ModelLoadError: its config is not one of this class.
    """
    try:
        with init_empty_weights(include_buffers=False):
            built: Component = model.from_config(
                {name: value for name, value in config.items() if name != "quantization_config"}
            )
    except Exception as error:
        raise ModelLoadError(
            f"{model.__name__} cannot be built from its config.json ({type(error).__name__}); "
            f"fetch the model again"
        ) from error
    return built


def _linear(model: nn.Module, path: str, layer: QuantizedLayer) -> nn.Linear:
    """The plain layer that a quantised one replaces.

    Raises:
        ShapeMismatch: there is no layer of its size.
    """
    try:
        plain = model.get_submodule(path)
    except AttributeError:
        plain = None
    if not isinstance(plain, nn.Linear):
        raise ShapeMismatch(f"the component has quantised weights of {path}, which is not a layer")
    found = (layer.out_features, layer.in_features)
    wanted = (plain.out_features, plain.in_features)
    if found != wanted:
        raise ShapeMismatch(f"{path} has {found} outputs and inputs; the config says {wanted}")
    return plain


def _fill(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    try:
        lacking, unexpected = model.load_state_dict(tensors, strict=False, assign=True)
    except RuntimeError as error:
        raise ShapeMismatch(
            "the shapes of the component's tensors contradict its config; fetch it again"
        ) from error
    if lacking:
        raise MissingWeight(f"the component lacks {lacking[0]}; fetch it again")
    if unexpected:
        raise ShapeMismatch(
            f"the component has a tensor {unexpected[0]} that its config.json does not provide for"
        )
