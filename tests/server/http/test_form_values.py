"""Text of form fields as the types that models declare."""

from typing import Any, Literal

import pytest
from pydantic import BaseModel

from engine.errors import InvalidParameter
from server.http.form_values import read_fields
from server.http.multipart import Form, Part
from server.protocol.images import ImageEditRequest, ImageVariationRequest


class Inner(BaseModel):
    left: int | None = None


class Body(BaseModel):
    count: int | None = None
    share: float | None = None
    on: bool | None = None
    text: str | None = None
    choice: Literal["a", "b"] | None = None
    inner: Inner | None = None


def form(**fields: str | list[str]) -> Form:
    return Form(
        {
            name: [Part(name, data=bytearray(text.encode())) for text in _list(texts)]
            for name, texts in fields.items()
        }
    )


def _list(texts: str | list[str]) -> list[str]:
    return [texts] if isinstance(texts, str) else texts


def read(**fields: str | list[str]) -> dict[str, Any]:
    return read_fields(form(**fields), Body, skip=[])


def test_types_follow_the_model() -> None:
    fields = read(count="-3", share="2.5e-1", on="TRUE", text="5", choice="a", other="7")
    assert fields == {
        "count": -3,
        "share": 0.25,
        "on": True,
        "text": "5",
        "choice": "a",
        "other": "7",
    }


def test_empty_is_null_except_for_text() -> None:
    assert read(count="", share="", on="", choice="", inner="", text="") == {
        "count": None,
        "share": None,
        "on": None,
        "choice": None,
        "inner": None,
        "text": "",
    }


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("count", "1.0"),
        ("count", "0x10"),
        ("count", "1_000"),
        ("count", " 1"),
        ("count", "\u0661"),
        ("count", "9" * 5000),
        ("share", "nan"),
        ("share", "1e9999"),
        ("share", "."),
        ("on", "1"),
        ("on", "on"),
        ("inner", "[]"),
        ("inner", "{"),
        ("inner", "[" * 10000),
    ],
)
def test_what_is_not_of_the_type_is_refused(name: str, text: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        read(**{name: text})
    assert caught.value.param == name
    assert len(str(caught.value)) < 200


def test_objects_by_brackets_or_json() -> None:
    assert read(**{"inner[left]": "4"}) == {"inner": {"left": 4}}
    assert read(inner='{"left": 4}') == {"inner": {"left": 4}}
    assert read(**{"inner[left]": "4", "inner[odd]": "x"})["inner"] == {"left": 4, "odd": "x"}


@pytest.mark.parametrize(
    "fields",
    [
        {"count": ["1", "2"]},
        {"inner": "{}", "inner[left]": "1"},
        {"inner[left]": "1", "inner": "{}"},
        {"text": "x", "text[a]": "y"},
    ],
)
def test_a_field_may_be_given_once(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameter, match="more than once"):
        read(**fields)


@pytest.mark.parametrize("model", [ImageEditRequest, ImageVariationRequest])
def test_every_field_of_the_image_routes_has_a_readable_type(model: type[BaseModel]) -> None:
    for name in model.model_fields.keys() - {"images", "mask"}:
        read_fields(form(**{name: ""}), model, skip=[])
