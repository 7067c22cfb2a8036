"""Serves another engine's pipeline at `POST /v1/images/generations`, for the comparison of images.

    python -m loadtest.image_peer FOLDER --port 8111 --threads 2 --dtype bfloat16
    OPENVINO_PYTHON -m loadtest.image_peer FOLDER --engine openvino

The engine is diffusers, or OpenVINO GenAI with a folder that `optimum-cli export openvino` wrote.
Draws one request at a time, as a pipeline does; others wait in the listen queue. Accepts the fields
that `image_client.py` sends and no others.
"""

import argparse
import base64
import io
import json
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, Protocol

PATH = "/v1/images/generations"

_QUEUE = 128
_OPENVINO_DTYPES = {"float32": "f32", "bfloat16": "bf16"}


class Painter(Protocol):
    """Draws one picture as a PNG file. Raises KeyError, TypeError or ValueError for a bad body."""

    def __call__(self, body: dict[str, Any]) -> bytes: ...


class DiffusersPainter:
    """A text-to-image pipeline from a diffusers folder, on the CPU.

    `compiled` gives the denoiser and the decoder to `torch.compile`, which takes minutes for the
    first picture of each size.
    """

    def __init__(
        self, folder: Path, *, dtype: str, channels_last: bool, compiled: bool, threads: int
    ) -> None:
        import torch
        from diffusers import DiffusionPipeline

        torch.set_num_threads(threads)
        pipeline = DiffusionPipeline.from_pretrained(
            folder, torch_dtype=getattr(torch, dtype), local_files_only=True
        )
        if channels_last:
            pipeline.unet.to(memory_format=torch.channels_last)
            pipeline.vae.to(memory_format=torch.channels_last)
        if compiled:
            pipeline.unet = torch.compile(pipeline.unet)
            pipeline.vae.decode = torch.compile(pipeline.vae.decode)
        pipeline.set_progress_bar_config(disable=True)
        self._pipeline = pipeline
        self._generator = torch.Generator

    def __call__(self, body: dict[str, Any]) -> bytes:
        width, height = _sides(body)
        (image,) = self._pipeline(
            body["prompt"],
            width=width,
            height=height,
            num_inference_steps=body["num_inference_steps"],
            guidance_scale=body["guidance_scale"],
            generator=self._generator().manual_seed(body["seed"]),
        ).images
        return _png(image)


class OpenVinoPainter:
    """A `Text2ImagePipeline` of OpenVINO GenAI, compiled on the CPU for each size when it comes."""

    def __init__(self, folder: Path, *, dtype: str, threads: int) -> None:
        self._folder = folder
        self._properties = {
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": _OPENVINO_DTYPES[dtype],
        }
        self._pipelines: dict[tuple[int, int, float], Any] = {}

    def __call__(self, body: dict[str, Any]) -> bytes:
        from PIL import Image

        width, height = _sides(body)
        guidance = float(body["guidance_scale"])
        key = (width, height, guidance)
        if key not in self._pipelines:
            self._pipelines[key] = self._compiled(*key)
        pictures = self._pipelines[key].generate(
            body["prompt"],
            width=width,
            height=height,
            num_inference_steps=body["num_inference_steps"],
            guidance_scale=guidance,
            rng_seed=body["seed"],
        )
        return _png(Image.fromarray(pictures.data[0]))

    def _compiled(self, width: int, height: int, guidance: float) -> Any:
        import openvino_genai

        pipeline = openvino_genai.Text2ImagePipeline(str(self._folder))
        pipeline.reshape(1, height, width, guidance)
        pipeline.compile("CPU", **self._properties)
        return pipeline


def _sides(body: dict[str, Any]) -> tuple[int, int]:
    width, height = (int(side) for side in body["size"].split("x"))
    return width, height


def _png(image: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


class PeerServer(HTTPServer):
    """Handles one request at a time, on the thread that calls `serve_forever`."""

    request_queue_size = _QUEUE

    def __init__(self, port: int, painter: Painter) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.painter = painter


class _Handler(BaseHTTPRequestHandler):
    server: PeerServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path != PATH:
            self._answer(404, _error(f"there is only {PATH} here"))
            return
        try:
            picture = self.server.painter(json.loads(body))
        except (KeyError, TypeError, ValueError) as error:
            self._answer(400, _error(f"{type(error).__name__}: {error}"))
            return
        data = [{"b64_json": base64.b64encode(picture).decode()}]
        self._answer(200, {"created": int(time.time()), "data": data})

    def _answer(self, status: int, value: dict[str, Any]) -> None:
        text = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: Any) -> None:
        """Do nothing: printing a line per request would add to the latency."""


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message}}


def _painter(options: argparse.Namespace) -> Painter:
    common = {"dtype": options.dtype, "threads": options.threads}
    if options.engine == "openvino":
        return OpenVinoPainter(options.folder, **common)
    return DiffusersPainter(
        options.folder,
        channels_last=options.channels_last,
        compiled=options.compile,
        **common,
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m loadtest.image_peer")
    parser.add_argument("folder", type=Path, help="a Stable Diffusion pipeline's folder")
    parser.add_argument("--engine", choices=("diffusers", "openvino"), default="diffusers")
    parser.add_argument("--port", type=int, default=8111)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=sorted(_OPENVINO_DTYPES), default="float32")
    parser.add_argument("--channels-last", action="store_true", help="for diffusers")
    parser.add_argument("--compile", action="store_true", help="for diffusers: torch.compile")
    options = parser.parse_args()
    PeerServer(options.port, _painter(options)).serve_forever()


if __name__ == "__main__":
    main()
