import json
from pathlib import Path

import pytest

from tools.demo_image_model import export as module
from tools.demo_image_model.captions import vocabulary
from tools.demo_image_model.export import export

SHIPPED = Path(__file__).parents[3] / "engine/data/shapes"


@pytest.fixture
def trained(tmp_path: Path) -> tuple[Path, Path]:
    """A base and an editing UNet, as far as the export looks at them."""
    base, edit = tmp_path / "base", tmp_path / "edit"
    for folder, text in ((base / "unet", "base"), (edit, "edit")):
        folder.mkdir(parents=True)
        (folder / "weights").write_text(text)
        (folder / "config.json").write_text(json.dumps({"_name_or_path": "here", "kind": text}))
    (base / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    return base, edit


def test_puts_the_editing_unet_beside_the_base_and_names_it(
    trained: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "stale").write_text("")
    export(*trained, out)
    assert (out / "unet" / "weights").read_text() == "base"
    assert (out / "unet_edit" / "weights").read_text() == "edit"
    assert not (out / "stale").exists()
    assert json.loads((out / "unet_edit" / "config.json").read_text()) == {"kind": "edit"}
    index = json.loads((out / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    assert index["unet_edit"] == ["diffusers", "UNet2DConditionModel"]
    assert index["_defaults"]["size"] == 128
    assert {"red", "circle", "make"} <= set(index["_vocabulary"])


def test_what_ships_names_the_words_of_the_training_data() -> None:
    index = json.loads((SHIPPED / "model_index.json").read_text())
    assert index["_vocabulary"] == vocabulary()


def test_refuses_a_folder_too_large_to_ship_and_keeps_the_old_one(
    trained: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("")
    monkeypatch.setattr(module, "MAX_BYTES", 10)
    with pytest.raises(ValueError, match="at most 10"):
        export(*trained, out)
    assert (out / "old").exists()
