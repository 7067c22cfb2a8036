import pytest

from engine.files.gguf_part_names import first_part, model_name, part_names

PARTS = [f"q4/a.b-0000{i}-of-00003.gguf" for i in (1, 2, 3)]


@pytest.mark.parametrize("name", PARTS)
def test_a_part_names_all(name):
    assert part_names(name) == PARTS
    assert first_part(name) == PARTS[0]
    assert model_name(name) == "a.b"


@pytest.mark.parametrize(
    "name",
    [
        "a.gguf",
        "a-00004-of-00003.gguf",
        "a-00000-of-00003.gguf",
        "a-00000-of-00000.gguf",
        "a-1-of-3.gguf",
        "a-00001-of-00003.safetensors",
        "a-00001-of-00003.gguf.part",
        "-00001-of-00003.gguf",
        "",
    ],
)
def test_another_file_is_itself(name):
    assert part_names(name) == [name]
    assert first_part(name) == name
    assert model_name(f"b/{name}") == (name.rpartition(".")[0] or "b")


def test_ten_thousands_of_parts():
    names = part_names("a-00010-of-99999.gguf")
    assert len(names) == 99999
    assert names[12344] == "a-12345-of-99999.gguf"
