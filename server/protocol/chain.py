"""`then` in the bodies of the image routes: further operations on each image after it is drawn."""

import contextlib
from collections.abc import Iterator, Sequence
from copy import copy
from typing import Annotated, Any, Literal, Self

from pydantic import (
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from engine.errors import EngineError, InvalidParameter, RequestAborted
from server.protocol.file_fields import FileFields
from server.protocol.made_with import MadeWith
from server.protocol.matting import MatteFields
from server.protocol.upscaling import EnlargeFields

MAX_STAGES = 4
FILE_FIELDS = tuple(name for name in FileFields.model_fields if name != "model")


class _StageFields(FileFields):
    """The fields of every stage. Unknown fields are refused, because they would silently have no
    effect."""

    model_config = ConfigDict(json_schema_extra={"additionalProperties": False})

    operation: str
    made_with: MadeWith | None = Field(
        None,
        description="Digest of the model's files that this stage was done with, from an image's "
        "metadata. If the model has other files now, a warning says so.",
    )

    @model_validator(mode="after")
    def _check_known(self) -> Self:
        if unknown := self.ignored_fields():
            raise InvalidParameter(
                f"{self.operation} has no field {unknown[0][:80]!r} here; its fields are "
                f"{', '.join(type(self).model_fields)}",
            )
        return self


class EnlargeStage(_StageFields, EnlargeFields):
    """Enlarge the image."""

    operation: Literal["enlarge"]


class MatteStage(_StageFields, MatteFields):
    """Remove the image's background."""

    operation: Literal["matte"]


@contextlib.contextmanager
def within_stage(number: int | None) -> Iterator[None]:
    """Errors of this block name the stage of that number, unless it is None.

    Raises:
        EngineError: as in the block.
    """
    try:
        yield
    except RequestAborted:
        raise
    except EngineError as error:
        if number is None:
            raise
        raise _named(error, f"then[{number}]") from error


def _named(error: EngineError, place: str) -> EngineError:
    named = copy(error)  # several requests may get the same error
    named.message = f"{place}: {error.message}"
    named.param = place if error.param in (None, "image") else f"{place}.{error.param}"
    return named


def _with_numbers(stages: Any, read: ValidatorFunctionWrapHandler) -> Any:
    """Read the stages; an error of our own validators names the stage."""
    try:
        return read(stages)
    except EngineError:
        for number, stage in enumerate(stages):
            with within_stage(number):
                read([stage])
        raise


def _tag(stage: Any) -> str:
    # Error messages leave out the parts of a field's path that begin with a bracket.
    known = stage if isinstance(stage, dict) else getattr(stage, "__dict__", {})
    return f"[{known.get('operation')}]"


Stage = Annotated[
    Annotated[EnlargeStage, Tag("[enlarge]")] | Annotated[MatteStage, Tag("[matte]")],
    Discriminator(
        _tag,
        custom_error_type="operation",
        custom_error_message="operation must be enlarge or matte",
    ),
]
Then = Annotated[list[Stage], Field(max_length=MAX_STAGES), WrapValidator(_with_numbers)]


def check_stages(
    body: FileFields, stages: Sequence[EnlargeStage | MatteStage], *, is_streamed: bool
) -> None:
    """Check the stages together, and move the file fields of the last one to the body.

    Raises:
        InvalidParameter: names the stage and the field.
    """
    for number, stage in enumerate(stages):
        is_last = stage is stages[-1]
        with within_stage(number):
            _check_stage(stage, is_last=is_last, is_streamed=is_streamed)
        for name in FILE_FIELDS:
            if is_last and getattr(stage, name) is not None:
                setattr(body, name, getattr(stage, name))
                setattr(stage, name, None)


def _check_stage(stage: EnlargeStage | MatteStage, *, is_last: bool, is_streamed: bool) -> None:
    if isinstance(stage, EnlargeStage) and stage.partial_images and not is_streamed:
        raise InvalidParameter("partial_images needs stream: true", param="partial_images")
    if is_last:
        return
    if isinstance(stage, MatteStage) and stage.result in ("alpha", "trimap"):
        raise InvalidParameter(
            f"output {stage.output} is not an image of the subject, so no other stage can follow "
            "it; make it the last stage, or leave output out",
            param="output",
        )
    for name in FILE_FIELDS:
        if getattr(stage, name) is not None:
            raise InvalidParameter(
                f"{name} says how to write a file, and only the last stage's result is written; "
                "move it to the last stage",
                param=name,
            )
