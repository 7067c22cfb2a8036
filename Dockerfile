# syntax=docker/dockerfile:1
# Tandem for NVIDIA GPUs. The CPU image has other arguments: docker compose -f docker/compose.yaml build
ARG BASE=nvidia/cuda:12.8.1-runtime-ubuntu24.04@sha256:ebef3c171eeef0298e4eb2e4be843105edf3b8b0ac45e0b43acee358e8046867
FROM ${BASE} AS build

# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3 python3-venv g++ \
 && rm -rf /var/lib/apt/lists/*

WORKDIR /app
ENV PATH=/app/.venv/bin:$PATH PIP_NO_CACHE_DIR=1

# torch first: it is large and changes rarely. An empty TORCH_INDEX takes it from the usual index.
# It is a range as in pyproject.toml: which build fits depends on the index and the driver.
ARG TORCH_INDEX=
# hadolint ignore=DL3013
RUN python3 -m venv .venv \
 && pip install --no-compile ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "torch>=2.9"

COPY pyproject.toml constraints.txt README.md LICENSE NOTICE ./
COPY server ./server
COPY engine ./engine
COPY kernels ./kernels
COPY loadtest ./loadtest
COPY evaluation ./evaluation
COPY configs ./configs
ARG EXTRAS=
RUN pip install --no-compile --constraint constraints.txt ".${EXTRAS:+[$EXTRAS]}"

# The native CPU operations for every rung, so that no image needs a compiler for them. Python
# compiles what is imported on the way; of the rest, most is never used.
WORKDIR /
RUN python -m kernels.tools.prebuild \
 && python -c "import server.app, engine.worker.loop, engine.contract.kinds as k; \
    [k.imported(kind.loader) for kind in k.KINDS.values()]" \
 && rm -rf /app/.venv/lib/python*/site-packages/torch/include

# What no server reads: test suites, tools and types of libraries, pip, onnxruntime's library for C
# (Python's module contains it once more), diffusers' pipelines but two (for FLUX.2's messages and for
# training), what transformers' models are generated from, and symbols, of which torch has 92 MB.
# Only in the CPU image (it names an index), as nobody has tried a GPU's libraries without theirs.
RUN test -z "$TORCH_INDEX" || { packages=$(echo /app/.venv/lib/python*/site-packages) \
 && cd "$packages" \
 && rm -r torch/bin/protoc* networkx onnxruntime/transformers onnxruntime/quantization \
    onnxruntime/tools onnxruntime/capi/libonnxruntime.so.* diffusers/modular_pipelines \
    scipy/cluster scipy/datasets scipy/fftpack scipy/io scipy/odr scipy/signal \
 && find diffusers/pipelines -mindepth 1 -maxdepth 1 -type d ! -name flux2 \
    ! -name stable_diffusion -exec rm -r {} + \
 && find transformers/models -name "modular_*.py" -delete \
 && find . -name "*.pyi" -delete \
 && find cv2/data -name "haarcascade_*" ! -name "*_frontalface_default.xml" -delete \
 && find numpy scipy sympy -type d -name tests -prune -exec rm -r {} + \
 && find . -type f -name "*.so*" ! -path "*.libs/*" -exec strip --strip-unneeded {} + \
 && pip uninstall --yes pip ; }

FROM ${BASE}

# Triton's launchers are compiled on the machine that has the GPU; a CPU image needs no COMPILER.
ARG COMPILER="g++ python3-dev"
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3 libstdc++6 ${COMPILER} \
 && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 10001 tandem
WORKDIR /app
COPY LICENSE NOTICE ./
COPY --from=build /app/.venv ./.venv
USER 10001
ENV PATH=/app/.venv/bin:$PATH PYTHONUNBUFFERED=1

# Downloaded models and compiled operations live in a volume, so that a new container starts at once
# and without the network. A volume takes its owner from the folder that the image has there.
RUN mkdir -p /home/tandem/.cache/tandem
VOLUME /home/tandem/.cache/tandem
EXPOSE 8000
# Healthy is what answers requests. The first start downloads models: failures do not count meanwhile.
HEALTHCHECK --interval=10s --timeout=3s --start-period=30m \
  CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/ready', timeout=2)"]

# Inside a container the address must be reachable from outside it; set an API key before exposing it.
ENTRYPOINT ["tandem", "serve", "--host", "0.0.0.0"]
