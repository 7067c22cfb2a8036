"""Weights that stay as a GGUF file has them."""

from dataclasses import dataclass

from torch import Tensor

from engine.errors import ModelLoadError
from engine.models.layers.linear_method import LinearPart
from engine.models.layers.panels_method import PanelsMethod
from kernels import GGUFType, linear_gguf, panels_from_gguf
from kernels.linear_gguf.quant_type import BLOCKS, row_bytes
from kernels.linear_panels.gguf import FORMATS


@dataclass(frozen=True, slots=True)
class GgufMethod(PanelsMethod):
    """On a CPU in panels, which hold the same numbers; on a GPU as they are in the file."""

    quant_type: GGUFType
    int8_activations: bool = False

    def create_weights(
        self, in_features: int, out_features: int, has_bias: bool
    ) -> dict[str, tuple[int, ...]]:
        """The weight's shape is [N, bytes of a row]."""
        weight = {"weight": (out_features, row_bytes(self.quant_type, in_features))}
        return super(GgufMethod, self).create_weights(in_features, out_features, has_bias) | weight

    def process_weights_after_loading(self, part: LinearPart) -> None:
        if part.in_features % BLOCKS[self.quant_type].num_weights:
            raise ModelLoadError(
                f"a rank's {part.in_features} input features of type {self.quant_type.name} are "
                f"not whole blocks; set quantization to none"
            )
        rows = part.concatenated_as_loaded("weight")
        if part.device.type == "cpu":
            part.panels = panels_from_gguf(rows, self.quant_type)
        else:
            part.tensors["weight"] = rows.to(part.device)
        self.keep_bias(part)

    def apply(self, part: LinearPart, x: Tensor) -> Tensor:
        if part.panels is not None:
            return super(GgufMethod, self).apply(part, x)
        weight, bias = part.tensors["weight"], part.tensors.get("bias")
        return linear_gguf(x, weight, self.quant_type, bias)

    def apply_in_fp32(self, part: LinearPart, x: Tensor) -> Tensor:
        if part.panels is not None:
            return super(GgufMethod, self).apply_in_fp32(part, x)
        return self.apply(part, x.float())

    @property
    def bits_per_weight(self) -> float:
        return FORMATS[self.quant_type].bits_per_weight

    @property
    def takes_plain_weights(self) -> bool:
        return False
