"""Looks into the JSON schemas that pydantic makes of fields."""

from typing import Any


def variant(schema: dict[str, Any], type: str) -> dict[str, Any]:
    """The member of a nullable field's `anyOf` that is not null; the schema of any other field."""
    variants: list[dict[str, Any]] = schema.get("anyOf", [schema])
    return next(variant for variant in variants if variant.get("type") == type)


def integer_items(schema: Any) -> list[dict[str, Any]]:
    """Every array's item schema that is an integer, however deep."""
    if isinstance(schema, list):
        return [found for member in schema for found in integer_items(member)]
    if not isinstance(schema, dict):
        return []
    if schema.get("type") == "integer":
        return [schema]
    nested = [schema.get("items"), schema.get("anyOf")]
    return [found for member in nested for found in integer_items(member)]
