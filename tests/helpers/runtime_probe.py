"""Tries everything that a client or an operator can ask for, as if some packages were not
installed.

    python -m tests.helpers.runtime_probe '["scipy", …]' TEXT_MODEL '{"bitsandbytes": FOLDER, …}'
    python -m tests.helpers.runtime_probe '["scipy", …]'

The last argument has models in formats that only other packages write; without models it tries
the server's own options alone. Prints a JSON object: for each option what went wrong, or null.
"""

import asyncio
import functools
import importlib
import importlib.machinery
import io
import json
import pkgutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args


class Hidden:
    """Finds what Python's finder finds, except the hidden packages."""

    def __init__(self, names: list[str]) -> None:
        self._names = frozenset(names)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.partition(".")[0] in self._names:
            return None
        return importlib.machinery.PathFinder.find_spec(name, path, target)

    def find_distributions(self, context: Any) -> Iterator[Any]:
        for found in importlib.machinery.PathFinder.find_distributions(context):
            if found.metadata["Name"].lower().replace("-", "_") not in self._names:
                yield found

    def invalidate_caches(self) -> None:
        importlib.machinery.PathFinder.invalidate_caches()


def hide(names: list[str]) -> None:
    """Make imports of these packages fail from now on."""
    place = sys.meta_path.index(importlib.machinery.PathFinder)
    sys.meta_path[place] = Hidden(names)


Check = Callable[[], object]


def modules() -> Iterator[tuple[str, Check]]:
    """Every module of ours but kernels for a GPU and parts of Ray's processes, which the extras
    `gpu` and `ray` are for."""
    for package in ("server", "engine", "kernels", "loadtest", "evaluation"):
        root = importlib.import_module(package)
        for found in pkgutil.walk_packages(root.__path__, f"{package}."):
            parts = found.name.split(".")
            if found.name in ("server.ray_serve.application", "server.ray_serve.router"):
                continue
            if parts[-1] == "__main__" or "triton" in found.name or "_interpreter" in parts:
                continue
            yield f"module {found.name}", lambda name=found.name: importlib.import_module(name)


def image_options() -> Iterator[tuple[str, Check]]:
    from engine.contract.draw import ImageTask, PromptSyntax
    from engine.contract.pixels import Pixels
    from engine.contract.worker_settings import DType
    from engine.diffusion.families.quantized_layers import QUANTIZATIONS
    from engine.diffusion.noise_schedule import (
        DIFFUSION_SCHEDULES,
        FLOW_SCHEDULES,
        NoiseSchedules,
    )
    from server.images.decoding import decode_image
    from server.images.files import encode_image
    from server.protocol.file_fields import OutputFormat

    engine, info = load_images()
    grey = Pixels(width=64, height=64, channels=3, data=b"\x80" * (64 * 64 * 3))

    def draw(**changes: Any) -> None:
        from engine.contract.draw import PARAMS, ImageRequest

        task = changes.pop("task", ImageTask.TEXT_TO_IMAGE)
        pictures = [] if task is ImageTask.TEXT_TO_IMAGE else [grey]
        mask = Pixels(width=64, height=64, channels=1, data=b"\xff" * 4096)
        params = {"width": 64, "height": 64, "num_inference_steps": 2, "seed": 1} | changes
        engine.add(
            ImageRequest(
                request_id="r",
                model="m",
                prompt="a (red) circle",
                params=PARAMS[task](**params),
                images=pictures,
                mask=mask if task is ImageTask.INPAINT else None,
            )
        )
        while engine.has_work():
            for event in engine.step()[0]:
                if event.failure is not None:
                    raise AssertionError(event.failure.message)

    for name in info.denoising.schedulers:
        yield f"picture by {name}", lambda name=name: draw(scheduler=name)
    # The built-in model offers some of them only.
    plain = {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear"}
    diffusion = NoiseSchedules(plain, DIFFUSION_SCHEDULES)
    for name in DIFFUSION_SCHEDULES:
        yield f"scheduler {name}", lambda name=name: run_schedule(diffusion.create(name, 4))
    flow = NoiseSchedules({"_class_name": "FlowMatchEulerDiscreteScheduler"}, FLOW_SCHEDULES)
    for name in FLOW_SCHEDULES:
        yield f"flow scheduler {name}", lambda name=name: run_schedule(flow.create(name, 4))
    for syntax in PromptSyntax:
        yield f"syntax {syntax}", lambda syntax=syntax: draw(prompt_syntax=syntax)
    for task in info.tasks:
        yield f"task {task}", lambda task=task: draw(task=task)
    for name in get_args(OutputFormat):
        yield (
            f"image format {name}",
            lambda name=name: decode_image(
                encode_image(grey, name, metadata={"prompt": "p"}),
                param="image",
                max_pixels=10_000,
                max_side=100,
            ),
        )
    for name in get_args(DType):
        yield f"image dtype {name}", lambda name=name: load_images(image_dtype=name)

    for name in QUANTIZATIONS:
        yield f"image quantization {name}", lambda name=name: load_images(image_quantization=name)


def run_schedule(schedule: Any) -> None:
    import torch

    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(1, 4, 8, 8, generator=generator)
    for index in range(schedule.num_timesteps):
        prediction = 0.1 * schedule.scale(latents, index)
        latents = schedule.step(prediction, index, latents, generator)


def host() -> Any:
    from tests.helpers.host import Host

    return Host()


def load_images(**knobs: Any) -> Any:
    from engine.contract.settings import EngineConfig
    from engine.diffusion.loading import load_engine

    return load_engine(checkpoint("tandem-shapes"), "m", config(EngineConfig, **knobs), host())


def matting_options() -> Iterator[tuple[str, Check]]:
    from engine.contract.matte import MattingRequest
    from engine.contract.pixels import Pixels
    from engine.contract.settings import EngineConfig
    from engine.matting.loading import load_engine

    @functools.cache
    def engine() -> Any:
        return load_engine(checkpoint("u2netp"), "m", config(EngineConfig), host())[0]

    image = Pixels(width=64, height=64, channels=3, data=bytes(range(256)) * 48)
    levels = bytes([0] * 24 + [128] * 16 + [255] * 24) * 64
    trimap = Pixels(width=64, height=64, channels=1, data=levels)

    def cut(**fields: Any) -> None:
        engine().add(MattingRequest(request_id="r", model="m", image=image, **fields))
        while engine().has_work():
            for event in engine().step()[0]:
                assert event.failure is None, event.failure

    yield "matte by the network", cut
    yield "matte by a box", lambda: cut(box=(4, 4, 60, 60))
    yield "matte by a trimap", lambda: cut(trimap=trimap)


def upscaling_options() -> Iterator[tuple[str, Check]]:
    from engine.contract.enlarge import UpscaleRequest
    from engine.contract.examination import Faithfulness
    from engine.contract.pixels import Pixels
    from engine.contract.settings import EngineConfig
    from engine.upscaling.loading import load_engine

    @functools.cache
    def engine() -> Any:
        return load_engine(checkpoint("realesr-animevideov3"), "m", config(EngineConfig), host())[0]

    def enlarge(channels: int = 3, side: int = 256, **faithfulness: Any) -> None:
        image = Pixels(width=64, height=64, channels=channels, data=bytes(4096 * channels))
        wanted = Faithfulness(**faithfulness)
        sizes: dict[str, Any] = {"width": side, "height": side, "tile": 48, "overlap": 16}
        engine().add(
            UpscaleRequest(request_id="r", model="m", image=image, faithfulness=wanted, **sizes)
        )
        while engine().has_work():
            for event in engine().step()[0]:
                assert event.failure is None, event.failure

    yield "upscale", enlarge
    yield "upscale with alpha to another size", lambda: enlarge(channels=4, side=100)
    for name, value in (("fidelity", 1.0), ("face_guard", 1.0), ("heat_map", True)):
        yield f"upscale with {name}", lambda name=name, value=value: enlarge(**{name: value})


def checkpoint(ref: str) -> Any:
    from engine.weights.source import resolve_source

    cache = Path("~/.cache/tandem").expanduser()
    return resolve_source(ref, cache_dir=cache, on_progress=lambda fraction, line: None)


def config(config_class: Any, **knobs: Any) -> Any:
    return config_class(**({"device": "cpu", "num_threads": 1, "num_kv_blocks": 32} | knobs))


def text_options(folder: str, written: dict[str, str]) -> Iterator[tuple[str, Check]]:
    from engine.contract.generate import GenerateRequest
    from engine.contract.sampling_params import SamplingParams
    from engine.contract.settings import EngineConfig
    from engine.contract.text_settings import Quantization
    from engine.contract.worker_settings import DType, Policy
    from engine.llm.start.loading import load_engine
    from engine.text.tokenizer import load_tokenizer
    from tests.helpers.quantization.awq_checkpoints import write_awq
    from tests.helpers.quantization.gptq_checkpoints import Layout, write_gptq

    def answer(ref: str, **knobs: Any) -> None:
        engine, _ = load_engine(checkpoint(ref), "m", config(EngineConfig, **knobs), host())
        engine.add(
            GenerateRequest(
                request_id="r",
                model="m",
                prompt_token_ids=[5, 6, 7],
                sampling=SamplingParams(max_tokens=2, logprobs=1, repetition_penalty=1.1),
            )
        )
        while engine.has_work():
            for event in engine.step()[0]:
                assert event.failure is None, event.failure

    def embed(ref: str, **knobs: Any) -> None:
        from engine.contract.embed import EmbeddingRequest
        from engine.embedding.loading import load_engine

        engine, _ = load_engine(checkpoint(ref), "m", config(EngineConfig, **knobs), host())
        engine.add(EmbeddingRequest(request_id="r", model="m", inputs=[[5, 6, 7]]))
        [event] = engine.step()[0]
        assert event.failure is None, event.failure

    yield "embeddings of an encoder", lambda: embed("all-minilm-l6-v2")
    yield "embeddings of a decoder", lambda: embed(folder, kind="embedding")
    gguf = "smollm2-135m-instruct"
    gptq = str(write_gptq(Path(folder), Path(tempfile.mkdtemp()), Layout())[0])
    for name in get_args(DType):
        yield f"dtype {name}", lambda name=name: answer(folder, dtype=name)
    awq = str(write_awq(Path(folder), Path(tempfile.mkdtemp())))
    stored = {"gptq": gptq, "awq": awq, "gguf": gguf, "gguf-int8": gguf, **written}
    for name in get_args(Quantization):
        ref = stored.get(name, folder)
        yield f"quantization {name}", lambda name=name, ref=ref: answer(ref, quantization=name)
    for name in get_args(Policy):
        yield f"policy {name}", lambda name=name: answer(folder, scheduling_policy=name)
    for name, path in (("json", folder), ("gguf", str(checkpoint(gguf).path))):
        yield f"tokenizer {name}", lambda path=path: load_tokenizer(Path(path)).encode("Hello")


def server_options() -> Iterator[tuple[str, Check]]:
    import uvicorn

    from engine.processes.logs import configure_logging
    from server.settings import Settings

    for name in get_args(Settings.model_fields["log_format"].annotation):
        yield (
            f"log format {name}",
            lambda name=name: configure_logging(name, "warning", stream=io.StringIO()),
        )

    def loop() -> None:
        config = uvicorn.Config(lambda: None, log_config=None)
        config.load()
        with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
            kind = type(runner.get_loop()).__module__
        assert kind == "uvloop", kind
        assert "httptools" in config.http_protocol_class.__module__

    yield "event loop", loop


def main() -> None:
    hide(json.loads(sys.argv[1]))
    results: dict[str, str | None] = {}
    options = [server_options()]
    if sys.argv[2:]:
        options += [modules(), image_options(), matting_options(), upscaling_options()]
        options.append(text_options(sys.argv[2], json.loads(sys.argv[3])))
    for name, check in (option for group in options for option in group):
        try:
            check()
            results[name] = None
        except BaseException as error:
            results[name] = f"{type(error).__name__}: {error}"
    assert sys.__stdout__ is not None
    sys.__stdout__.write(json.dumps(results))


if __name__ == "__main__":
    main()
