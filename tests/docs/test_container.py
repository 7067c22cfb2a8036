"""The container files, as far as they can be checked without a container engine."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
LINES = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CACHE = "/home/tandem/.cache/tandem"
DIGEST = re.compile(r"@sha256:[0-9a-f]{64}$")


def instructions(name):
    return [line.removeprefix(name).strip() for line in LINES if line.startswith(f"{name} ")]


def copied():
    """What of the repository is in the image."""
    lines = [line for line in instructions("COPY") if "--from=" not in line]
    return {source for line in lines for source in line.split()[:-1]}


def test_base_images_are_pinned_by_digest():
    (base,) = [line for line in instructions("ARG") if line.startswith("BASE=")]
    services = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]
    images = [base, services["tandem"]["build"]["args"]["BASE"], services["prometheus"]["image"]]
    assert [image for image in images if not DIGEST.search(image)] == []


def test_a_cpu_image_has_operations_and_no_compiler():
    """They are compiled in the first stage, of which only the environment is copied."""
    build, final = "\n".join(LINES).split("\nFROM ${BASE}\n")
    assert "g++" in build and "python -m kernels.tools.prebuild" in build
    assert "g++" not in re.sub(r"^(#|ARG ).*", "", final, flags=re.MULTILINE)
    assert "COPY --from=build /app/.venv ./.venv" in final
    services = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]
    assert services["tandem"]["build"]["args"]["COMPILER"] == ""


def test_the_volume_belongs_to_the_user_who_writes_it():
    made = LINES.index(f"RUN mkdir -p {CACHE}")
    assert LINES.index("USER 10001") < made < LINES.index(f"VOLUME {CACHE}")


def test_healthy_means_ready():
    (check,) = instructions("HEALTHCHECK")
    assert "/ready" in check
    assert "/health" not in check


@pytest.mark.parametrize("name", PROJECT["project"]["license-files"])
def test_licences_and_notices_are_in_the_image_and_the_wheel(name):
    assert (ROOT / name).is_file()
    assert name in copied()


def test_nothing_that_is_copied_is_missing_or_ignored():
    ignored = (ROOT / ".dockerignore").read_text().split()
    for source in copied():
        assert (ROOT / source).exists(), source
        assert source.removeprefix("./") not in ignored, source


def test_the_package_brings_the_default_configuration():
    (files,) = PROJECT["tool"]["setuptools"]["data-files"].values()
    assert files == ["configs/default.yaml"]
    assert "configs" in copied()
