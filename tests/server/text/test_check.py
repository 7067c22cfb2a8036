"""What is tried of a model's text side before it is ready, and what is said when that fails."""

import asyncio
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from engine.errors import CorruptFile, ModelLoadError, ModelNotFound
from engine.processes import helper_process
from engine.processes.helper_process import RunningHelper
from server.text.check import check_text
from server.text.encoding_pool import EncodingPool
from server.text.texts import TextRegistry
from tests.helpers.server.fake_server import until


@pytest.fixture(autouse=True)
def shared_template_processes() -> None:
    """Have each app start and end processes of its own."""


pytestmark = pytest.mark.usefixtures("unkept_templates")


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
        ("{{ 1 / 0 }}", "even a greeting"),
        ("{{ messages[0].content.nothing.at.all }}", "even a greeting"),
        ("{{ raise_exception('never') }}", "never.*repair the checkpoint's chat template"),
        ("", "a greeting into no tokens"),
    ],
)
async def test_templates_that_cannot_be_rendered(folder: Path, template: str, words: str) -> None:
    with pytest.raises(ModelLoadError, match=words):
        await check(folder, template or "{# #}")


async def test_files_that_cannot_be_read(folder: Path) -> None:
    with pytest.raises(CorruptFile, match="not valid Jinja"):
        await check(folder, "{% if %}")
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(CorruptFile, match=r"tokenizer\.json"):
        await check(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelNotFound, match=r"no tokenizer\.json"):
        await check(folder)


async def test_a_text_side_that_is_forgotten_leaves_no_process(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, while and after its process starts."""
    children: list[RunningHelper] = []

    def start_and_note(command: Sequence[str]) -> RunningHelper:
        children.append(RunningHelper(command))
        return children[-1]

    monkeypatch.setattr(helper_process, "RunningHelper", start_and_note)
    texts = TextRegistry(EncodingPool(1))
    for is_far_enough in (lambda: True, lambda: bool(children), None):
        load = asyncio.create_task(texts.load(str(folder)))
        if is_far_enough is None:
            await load
        else:
            await asyncio.sleep(0)
            await until(is_far_enough)
        texts.forget(str(folder))
        texts.forget(str(folder))
        await asyncio.gather(load, return_exceptions=True)
        await until(lambda: not any(child.is_alive for child in children))
        assert not texts._loads
    assert len(children) == 2
    await texts.aclose()
