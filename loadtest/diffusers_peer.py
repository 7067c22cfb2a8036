"""Serves diffusers at `POST /v1/images/generations`, for the comparison of images.

    python -m loadtest.diffusers_peer FOLDER --port 8111 --threads 2 --dtype bfloat16

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
_DTYPES = ("float32", "bfloat16")


class Painter(Protocol):
    """Draws one picture as a PNG file. Raises KeyError, TypeError or ValueError for a bad body."""

    def __call__(self, body: dict[str, Any]) -> bytes: ...


class DiffusersPainter:
    """A `StableDiffusionPipeline` from a diffusers folder, on the CPU."""

    def __init__(self, folder: Path, *, dtype: str, channels_last: bool, threads: int) -> None:
        import torch
        from diffusers import StableDiffusionPipeline

        torch.set_num_threads(threads)
        pipeline = StableDiffusionPipeline.from_pretrained(
            folder, torch_dtype=getattr(torch, dtype), local_files_only=True
        )
        if channels_last:
            pipeline.unet.to(memory_format=torch.channels_last)
            pipeline.vae.to(memory_format=torch.channels_last)
        pipeline.set_progress_bar_config(disable=True)
        self._pipeline = pipeline
        self._generator = torch.Generator

    def __call__(self, body: dict[str, Any]) -> bytes:
        width, height = (int(side) for side in body["size"].split("x"))
        (image,) = self._pipeline(
            body["prompt"],
            width=width,
            height=height,
            num_inference_steps=body["num_inference_steps"],
            guidance_scale=body["guidance_scale"],
            generator=self._generator().manual_seed(body["seed"]),
        ).images
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


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m loadtest.diffusers_peer")
    parser.add_argument("folder", type=Path, help="a Stable Diffusion pipeline's folder")
    parser.add_argument("--port", type=int, default=8111)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=_DTYPES, default="float32")
    parser.add_argument("--channels-last", action="store_true")
    options = parser.parse_args()
    painter = DiffusersPainter(
        options.folder,
        dtype=options.dtype,
        channels_last=options.channels_last,
        threads=options.threads,
    )
    PeerServer(options.port, painter).serve_forever()


if __name__ == "__main__":
    main()
