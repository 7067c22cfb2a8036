"""Which models may be loaded: by name, and only what the operator has named."""

from pathlib import Path

import pytest

from engine.errors import InvalidParameter, UnknownModel
from server.models.loadable import LoadableModels
from server.settings import Settings


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of models, beside a file that is none of them."""
    folder = tmp_path / "models"
    for name in ("text/config.json", "image/model_index.json", "packed/a.gguf", "empty/notes.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    for name in ("small.Q4.gguf", "drawing.safetensors", "text.gguf", "notes.txt", ".hidden.gguf"):
        (folder / name).touch()
    (folder / "broken\nname.gguf").touch()
    (tmp_path / "secret.gguf").touch()
    return folder


def loadable(**settings: object) -> LoadableModels:
    given = {"models": ["start=org/start"], "enable_runtime_loading": True, **settings}
    return LoadableModels(Settings(**given))  # type: ignore[arg-type]


def test_each_model_of_the_folder_has_its_name(folder: Path) -> None:
    found = {spec.name: spec.ref for spec in loadable(models_dir=folder).specs()}
    assert found.pop("start") == "org/start"
    assert {name: Path(ref).name for name, ref in found.items()} == {
        "text": "text",
        "image": "image",
        "packed": "packed",
        "small.Q4": "small.Q4.gguf",
        "drawing": "drawing.safetensors",
        "text.gguf": "text.gguf",
    }
    assert all(Path(ref).is_absolute() for ref in found.values())


def test_the_parts_of_a_split_file_are_one_model(folder: Path) -> None:
    for part in (1, 2, 3):
        (folder / f"big.Q4-0000{part}-of-00003.gguf").touch()
    models = loadable(models_dir=folder)
    names = [spec.name for spec in models.specs() if spec.name.startswith("big")]
    assert names == ["big.Q4"]
    assert models.find("big.Q4").ref == str(folder / "big.Q4-00001-of-00003.gguf")


def test_what_is_put_there_later_is_found(folder: Path) -> None:
    models = loadable(models_dir=folder)
    (folder / "late.gguf").touch()
    assert models.find("late").ref == str(folder / "late.gguf")


@pytest.mark.parametrize(
    "asked",
    [
        "../secret",
        "../secret.gguf",
        "/etc/passwd",
        "empty",
        "notes",
        ".hidden",
        "",
        ".",
        "text/../../secret.gguf",
        "org/other",
        "smollm2-135m-instruct",
        "*",
    ],
)
def test_nothing_else_can_be_had(folder: Path, asked: str) -> None:
    models = loadable(models_dir=folder)
    for ask in ((asked,), ("new", asked)):
        with pytest.raises(UnknownModel):
            models.find(*ask)
    with pytest.raises(UnknownModel):
        models.find("new", str(folder.parent / "secret.gguf"))


def test_models_that_were_named() -> None:
    models = loadable(loadable_models=["other=org/other", "org/plain"])
    assert models.find("other").ref == "org/other"
    assert models.find("new", "other").ref == models.find("new", "org/other").ref == "org/other"
    assert models.find("org/plain").name == "org/plain"
    assert models.find("start").ref == "org/start"


def test_anything_if_the_operator_says_so(folder: Path) -> None:
    models = loadable(models_dir=folder, loadable_models=["*", "other=org/other"])
    assert models.find("text").ref == str(folder / "text"), "the names come first"
    assert models.find("other").ref == "org/other"
    found = models.find("/somewhere/else.gguf")
    assert (found.name, found.ref) == ("else", "/somewhere/else.gguf")
    found = models.find("mine", "org/any")
    assert (found.name, found.ref) == ("mine", "org/any")
    with pytest.raises(InvalidParameter):
        models.find("a\nb")
    assert "*" not in [spec.name for spec in models.specs()]


def test_a_folder_that_has_gone_away_holds_nothing(folder: Path) -> None:
    models = loadable(models_dir=folder)
    folder.rename(folder.with_name("moved"))
    assert [spec.name for spec in models.specs()] == ["start"]
