"""What is tried of a model's text side before it is ready, and what is said when that fails."""

import json
import shutil
from pathlib import Path

import pytest

from engine.errors import CorruptFile, ModelLoadError, ModelNotFound
from server.text.check import check_text
from server.text.encoding_pool import EncodingPool
from server.text.texts import TextRegistry


@pytest.fixture
def folder(tokenizer_folder: Path, tmp_path: Path) -> Path:
    """A copy, to be spoilt."""
    return Path(shutil.copytree(tokenizer_folder, tmp_path / "model"))


async def check(folder: Path, template: str | None = None) -> int:
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    texts = TextRegistry(EncodingPool(1))
    try:
        return await check_text(texts, str(folder))
    finally:
        await texts.aclose()


async def test_an_honest_model_passes(folder: Path) -> None:
    assert 0 < await check(folder) < 1000


async def test_a_model_without_a_template_passes(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert await check(folder) > 0


async def test_a_template_may_ask_for_a_system_message(folder: Path) -> None:
    template = (
        "{% if messages[0].role != 'system' %}{{ raise_exception('no system message') }}{% endif %}"
        "{{ messages[1].content }}"
    )
    assert await check(folder, template) > 0


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ 1 / 0 }}", "not even one greeting"),
        ("{{ messages[0].content.nothing.at.all }}", "not even one greeting"),
        ("{{ raise_exception('never') }}", "never.*mend the checkpoint's chat template"),
        ("", "no tokens of a greeting"),
    ],
)
async def test_templates_that_cannot_be_rendered(folder: Path, template: str, words: str) -> None:
    with pytest.raises(ModelLoadError, match=words):
        await check(folder, template or "{# #}")


async def test_files_that_cannot_be_read(folder: Path) -> None:
    with pytest.raises(CorruptFile, match="no valid Jinja"):
        await check(folder, "{% if %}")
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(CorruptFile, match=r"tokenizer\.json"):
        await check(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelNotFound, match=r"no tokenizer\.json"):
        await check(folder)
