"""Our package `kernels` beside Hugging Face's distribution of the same import name.

transformers, diffusers and bitsandbytes look for theirs by importing `kernels`. They must see that
ours is not it, and go on.
"""

import importlib.metadata
import importlib.util
import random
import re
import tomllib
from pathlib import Path

import pytest

from tests.helpers.plain_python import ROOT, printed

USES = {
    "bitsandbytes": """
        import bitsandbytes
        bitsandbytes.nn.Linear4bit
    """,
    "diffusers": """
        import diffusers
        diffusers.UNet2DModel
    """,
    "transformers": """
        import transformers
        from transformers.integrations import hub_kernels
        from transformers.utils import is_kernels_available
        assert not is_kernels_available()
        config = transformers.LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8,
            num_hidden_layers=1, num_attention_heads=1)
        transformers.LlamaForCausalLM(config)
    """,
}
OURS = "import kernels\nkernels.rms_norm"
INSTALLED = [name for name in USES if importlib.util.find_spec(name)]


OTHERS = random.sample([name for name in INSTALLED if name != "transformers"], len(INSTALLED) - 1)
"""In a drawn order: importing them takes seconds, so each is imported before ours or after it."""


@pytest.mark.slow
@pytest.mark.parametrize("ours_first", [False, True])
def test_libraries_work_beside_our_kernels(ours_first):
    theirs = [USES[name] for name in [*OTHERS[ours_first::2], "transformers"]]
    sources = [OURS, *theirs] if ours_first else [*theirs, OURS]
    lines = [line.strip() for line in "\n".join(sources).splitlines() if line.strip()]
    # Brackets may span lines; indentation means nothing in these sources.
    printed("-W", "ignore", "-c", "\n".join(lines))


def test_transformers_is_among_the_installed_ones():
    assert "transformers" in INSTALLED


def test_the_name_is_ours():
    import kernels

    assert Path(kernels.__file__).is_relative_to(ROOT)


def test_the_foreign_distribution_is_not_installed():
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.distribution("kernels")


def test_the_foreign_distribution_is_not_a_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    required = [*project["dependencies"], *(line for lines in extras for line in lines)]
    names = {re.split(r"[^A-Za-z0-9_.-]", line)[0].lower() for line in required}
    assert "torch" in names
    assert not names & {"kernels", "kernels-data"}
    asked_for = {line.split(";")[0].strip().lower() for line in required}
    assert not any("[kernels" in line for line in asked_for), "an extra would bring it"
