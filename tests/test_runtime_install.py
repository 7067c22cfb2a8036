"""What the plain installation offers must work with what it installs.

The packages that only the extras bring are hidden from a child process, which then tries every
option that a client or an operator has.
"""

import importlib.metadata
import json
import tomllib
from typing import Any, get_args

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from engine.contract.draw import PromptSyntax
from engine.contract.examination import Faithfulness
from engine.diffusion.noise_schedule import DIFFUSION_SCHEDULES, FLOW_SCHEDULES
from server.protocol.file_fields import OutputFormat
from tests.helpers.plain_python import ROOT, printed
from tests.helpers.quantization.stored_formats import VARIETIES, write_checkpoint

pytestmark = pytest.mark.slow
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def closure(requirements: list[str]) -> set[str]:
    """Names of the installed distributions that these bring, directly or through others."""
    found: set[str] = set()
    to_do = [(Requirement(text), "") for text in requirements]
    while to_do:
        requirement, parents_extra = to_do.pop()
        marker, name = requirement.marker, canonicalize_name(requirement.name)
        if marker is not None and not marker.evaluate({"extra": parents_extra}):
            continue
        for extra in ("", *requirement.extras):
            if (key := f"{name}[{extra}]") in found:
                continue
            found.add(key)
            try:
                needs = importlib.metadata.requires(name) or []
            except importlib.metadata.PackageNotFoundError:
                continue
            to_do += [(Requirement(text), extra) for text in needs]
    return {key.partition("[")[0] for key in found}


def modules_of_extras(dependencies: list[str]) -> list[str]:
    """Top-level modules here that an installation of just these would not have."""
    installed = closure(dependencies)
    return sorted(
        module
        for module, owners in importlib.metadata.packages_distributions().items()
        if not any(
            canonicalize_name(owner) in installed or owner.startswith("tandem") for owner in owners
        )
        # What every environment has, and what belongs to nobody in particular.
        and module not in ("pip", "setuptools", "pkg_resources", "_distutils_hack")
        and not module.startswith("__")
    )


def probe(dependencies: list[str], *models: str) -> dict[str, str | None]:
    hidden = json.dumps(modules_of_extras(dependencies))
    output = printed("-m", "tests.helpers.runtime_probe", hidden, *models)
    answers: dict[str, str | None] = json.loads(output.splitlines()[-1])
    return answers


@pytest.fixture(scope="module")
def written(
    tiny_llama: Any, tiny_gpt_oss: Any, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """Models by their format, for whose writing packages are needed that an installation lacks."""
    folders = {}
    names = (
        "bnb nf4",
        "W4A16",
        "FP8 blocks",
        "MXFP4",
        "auto-round",
        "torchao int8",
        "quanto qint8",
    )
    for variety in (VARIETIES[name] for name in (*names, "HQQ")):
        plain = tiny_gpt_oss() if variety.name == "mxfp4" else tiny_llama()
        packed, _ = write_checkpoint(plain, tmp_path_factory.mktemp("written"), variety)
        folders[variety.name] = str(packed)
    return folders


@pytest.fixture(scope="module")
def results(tiny_llama: Any, written: dict[str, str]) -> dict[str, str | None]:
    return probe(PROJECT["dependencies"], str(tiny_llama()), json.dumps(written))


def test_all_that_is_offered_works(results: dict[str, str | None]) -> None:
    assert {name: error for name, error in results.items() if error is not None} == {}


def test_the_probe_tries_what_is_offered(results: dict[str, str | None]) -> None:
    offered = [
        *(f"scheduler {name}" for name in DIFFUSION_SCHEDULES),
        *(f"flow scheduler {name}" for name in FLOW_SCHEDULES),
        *(f"syntax {syntax}" for syntax in PromptSyntax),
        *(f"image format {name}" for name in get_args(OutputFormat)),
        "image quantization bnb-nf4",
        "quantization gguf-int8",
        "embeddings of an encoder",
        "embeddings of a decoder",
        "matte by the network",
        "matte by a box",
        "matte by a trimap",
        *(f"upscale with {name}" for name in Faithfulness.__slots__),
        "module engine.worker.loop",
        "event loop",
    ]
    assert set(offered) <= results.keys()


def test_what_the_extras_bring_is_hidden() -> None:
    hidden = modules_of_extras(PROJECT["dependencies"])
    assert {"bitsandbytes", "hypothesis", "matplotlib", "sentencepiece", "openai"} <= set(hidden)
    assert not {"scipy", "torch", "numpy", "PIL", "uvloop", "yaml", "zmq"} & set(hidden)


def test_a_missing_dependency_would_be_seen() -> None:
    without = [text for text in PROJECT["dependencies"] if not text.startswith("uvloop")]
    assert len(without) == len(PROJECT["dependencies"]) - 1
    failed = {name for name, error in probe(without).items() if error is not None}
    assert failed == {"event loop"}
