"""Checks the components of a diffusers folder and loads them with their classes.

`from_pretrained` fills in what a file lacks with random numbers and a warning; here that is an
error.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL
from safetensors import SafetensorError
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from engine.diffusion.families.autoencoder import Autoencoder
from engine.diffusion.families.options import LoadOptions
from engine.errors import (
    CorruptFile,
    MissingWeight,
    ModelLoadError,
    ShapeMismatch,
    UnsupportedArchitecture,
)
from engine.files.checkpoint_files import check_folder, read_json, read_optional_json
from engine.models.config import MAX_LAYERS
from engine.weights.diffusers_layout import (
    FULL_FIRST,
    HALF_FIRST,
    choose_weights,
    has_pickles,
)
from engine.weights.safetensors import read_header

Component = TypeVar("Component")

_CLIP_CLASSES = {
    "CLIPTextModel": CLIPTextModel,
    "CLIPTextModelWithProjection": CLIPTextModelWithProjection,
}


class ComponentFolder:
    """A folder with model_index.json.

    Attributes:
        index: the contents of model_index.json.
    """

    def __init__(self, folder: Path, options: LoadOptions) -> None:
        self.index = read_json(folder / "model_index.json")
        self._folder = folder
        self._options = options
        diffusers.utils.logging.disable_progress_bar()
        transformers.utils.logging.disable_progress_bar()

    def has(self, name: str) -> bool:
        """Whether the index lists this component as present."""
        return self.class_name(name) is not None

    def class_name(self, name: str) -> str | None:
        """The class of a component; None if there is none."""
        entry = self.index.get(name)
        if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str):
            return entry[1]
        return None

    def defaults(self) -> dict[str, float]:
        """Default values of requests, from `_defaults` of the index; empty if missing.

        Raises:
            CorruptFile: a value is not a positive number.
        """
        defaults = self.index.get("_defaults", {})
        if not isinstance(defaults, dict) or not all(map(_is_positive, defaults.values())):
            raise CorruptFile("_defaults of model_index.json must map names to positive numbers")
        return defaults

    def vocabulary(self) -> frozenset[str] | None:
        """All words that the model was trained on, from `_vocabulary` of the index.

        None if missing: models trained on natural text know some meaning of any word.

        Raises:
            CorruptFile: it is not a list of words.
        """
        words = self.index.get("_vocabulary")
        if words is None:
            return None
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise CorruptFile("_vocabulary of model_index.json must be a list of words")
        return frozenset(words)

    def does_one_edit(self) -> bool:
        """Whether an instruction may ask for only one edit, from `_one_edit` of the index."""
        return self.index.get("_one_edit") is True

    def load(
        self,
        name: str,
        component_class: type[Component],
        *,
        dtype: torch.dtype | None = None,
        **extra: Any,
    ) -> Component:
        """Load a component with its weights, on the CPU unless `extra` says otherwise.

        Args:
            component_class: a class of diffusers or transformers.
            dtype: the type of weights, by default the model's own (`LoadOptions.dtype`).
            extra: further arguments of `from_pretrained`, such as a quantization config.

        Raises:
            UnsupportedArchitecture: the index names another class.
            MissingWeight, ShapeMismatch, CorruptFile: its files are incomplete or damaged.
            ModelLoadError: it cannot be read.
        """
        self._check_class(name, component_class.__name__)
        variant = self._check_weights(name)
        with _reading(name):
            component, report = component_class.from_pretrained(  # type: ignore[attr-defined]
                str(self._folder / name),
                dtype=dtype or self._options.dtype,
                variant=variant or None,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                **extra,
            )
        _check_report(name, report)
        component.requires_grad_(False)
        loaded: Component = component.eval()
        return loaded

    def text_encoder(self, name: str) -> CLIPTextModel | CLIPTextModelWithProjection:
        """Load a CLIP text encoder onto the device.

        Raises:
            ModelLoadError: it cannot be loaded.
        """
        component_class = _CLIP_CLASSES.get(self.class_name(name) or "", CLIPTextModel)
        return self.load(name, component_class).to(self._options.device)

    def tokenizer(
        self, name: str, tokenizer_class: type[Component] = CLIPTokenizer, *more_names: str
    ) -> Component:
        """Load a tokenizer.

        Args:
            more_names: further classes that the index may name, such as a processor with this
                tokenizer.

        Raises:
            UnsupportedArchitecture: the index names another class.
            ModelLoadError: its files are missing or damaged.
        """
        known = (tokenizer_class.__name__, f"{tokenizer_class.__name__}Fast", *more_names)
        self._check_class(name, *known)
        check_component(self._folder / name)
        files = _names(self._folder / name)
        if "spiece.model" in files and "tokenizer.json" not in files:
            raise ModelLoadError(
                f"{name} has only a spiece.model, which this server does not read; create a "
                f"tokenizer.json with transformers (needs sentencepiece and protobuf): "
                f"T5Tokenizer.from_pretrained(folder).save_pretrained(folder)"
            )
        with _reading(name):
            tokenizer: Component = tokenizer_class.from_pretrained(  # type: ignore[attr-defined]
                str(self._folder / name), local_files_only=True
            )
        return tokenizer

    def autoencoder(self, name: str = "vae", *, scaling_factor: float | None = None) -> Autoencoder:
        """Load the VAE onto the device.

        Args:
            scaling_factor: replaces the value in its config.

        Raises:
            ModelLoadError: it cannot be loaded.
        """
        config = self.config(name)
        vae = self.load(name, AutoencoderKL, dtype=autoencoder_dtype(config, self._options.dtype))
        if scaling_factor is not None:
            vae.register_to_config(scaling_factor=scaling_factor)
        return place_autoencoder(vae, self._options)

    def config(self, name: str, file: str = "config.json") -> dict[str, Any]:
        """A component's configuration."""
        return read_json(self._folder / name / file)

    def scheduler_config(self) -> dict[str, Any]:
        """The configuration of the model's own noise schedule, with `_class_name`."""
        config = self.config("scheduler", "scheduler_config.json")
        config.setdefault("_class_name", self.class_name("scheduler"))
        found = getattr(diffusers, str(config["_class_name"]), None)
        unknown = UnsupportedArchitecture(
            f"scheduler class {config['_class_name']!r} is not one of diffusers"
        )
        if not isinstance(found, type):
            raise unknown
        # diffusers has placeholders for classes whose packages are missing; these cannot be
        # created.
        try:
            diffusers.utils.requires_backends(found, getattr(found, "_backends", []))
        except ImportError:
            needed = " and ".join(sorted({*getattr(found, "_backends", [])} - {"torch"}))
            raise UnsupportedArchitecture(
                f"scheduler class {config['_class_name']!r} needs the package {needed}, which is "
                f"not installed; install it, or name another class in scheduler_config.json"
            ) from None
        if not hasattr(found, "set_timesteps"):
            raise unknown
        return config

    def _check_class(self, name: str, *expected: str) -> None:
        found = self.class_name(name)
        if found is None:
            raise ModelLoadError(f"model_index.json names no {name}; this model needs one")
        if found not in expected:
            raise UnsupportedArchitecture(
                f"{name} is of class {found!r}; only {' or '.join(expected)} is supported"
            )

    def _check_weights(self, name: str) -> str:
        """The variant to load, after a check that its files are complete."""
        check_component(self._folder / name)
        variant, files = weight_files(self._folder / name, self._options.dtype)
        if not files and has_pickles(_names(self._folder / name)):
            raise ModelLoadError(
                f"{name} has its weights only as pickles, which can run code when read; convert "
                f"the model to safetensors with save_pretrained()"
            )
        if not files:
            raise MissingWeight(f"{name} has no complete set of .safetensors files; fetch them")
        for file in files:
            read_header(file)
        return variant


def check_component(folder: Path) -> None:
    """Check a component's folder before a library builds what its config.json says.

    Raises:
        CorruptFile: a file is not a regular file, or not valid JSON.
        ModelLoadError: there are more layers than can be built in reasonable time.
    """
    if not folder.is_dir():
        return
    check_folder(folder)
    for key, value in read_optional_json(folder / "config.json").items():
        counts = value if isinstance(value, list) else [value]
        numbers = [n for n in counts if isinstance(n, int) and "layers" in key]
        if max(numbers, default=0) > MAX_LAYERS or len(counts) > MAX_LAYERS:
            raise ModelLoadError(
                f"config.json of {folder.name} has {key} above {MAX_LAYERS}, the most layers that "
                f"are allowed; fetch the model again"
            )


def weight_files(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[str, list[Path]]:
    """The variant and files from which a component in `folder` is loaded; ("", []) if there are
    none."""
    variants = FULL_FIRST if dtype == torch.float32 else HALF_FIRST
    variant, names = choose_weights(_names(folder), variants)
    return variant, [folder / name for name in names]


def autoencoder_dtype(config: Mapping[str, Any], dtype: torch.dtype) -> torch.dtype:
    """The VAE's dtype; some VAEs overflow in fp16 and say so in their config."""
    overflows = dtype == torch.float16 and bool(config.get("force_upcast", True))
    return torch.float32 if overflows else dtype


def place_autoencoder(vae: AutoencoderKL, options: LoadOptions) -> Autoencoder:
    """Move a VAE to the device, with channels last, which is fastest for convolutions."""
    vae.to(memory_format=torch.channels_last)
    return Autoencoder(vae, dtype=vae.dtype, device=options.device)


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []


def _check_report(name: str, report: Mapping[str, Any]) -> None:
    missing = sorted(str(key) for key in report.get("missing_keys", ()))
    if missing:
        raise MissingWeight(
            f"{name} lacks {len(missing)} tensors ({', '.join(missing[:3])}); fetch it again"
        )
    mismatched = sorted(str(entry) for entry in report.get("mismatched_keys", ()))
    if mismatched:
        raise ShapeMismatch(
            f"{name}: the shape of {mismatched[0]} contradicts its config; fetch it again"
        )


@contextlib.contextmanager
def _reading(name: str) -> Iterator[None]:
    """Turn the libraries' errors into load errors whose text names no path."""
    try:
        yield
    except ModelLoadError:
        raise
    except SafetensorError as error:
        raise CorruptFile(f"{name} is damaged; fetch it again") from error
    except Exception as error:
        text = str(error)
        if "shape" in text or "size mismatch" in text or "mismatched" in text:
            raise ShapeMismatch(
                f"the shapes of tensors of {name} contradict its config; fetch it again"
            ) from error
        raise ModelLoadError(
            f"{name} cannot be loaded ({type(error).__name__}); fetch the model again"
        ) from error
