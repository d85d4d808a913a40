"""Plain values into a section of a recipe, with one line for the first that is wrong."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from pipelines.errors import UserError
from pipelines.recipe_sections import Section

SectionT = TypeVar("SectionT", bound=Section)


def check_section(
    section: type[SectionT], plain: Mapping[str, Any], source: str, *, prefix: str = ""
) -> SectionT:
    """The checked section; a `UserError` names the source and the first key that is wrong, and the
    nearest right one.

    Args:
        section: what the values must fit.
        plain: the values as YAML or JSON holds them.
        source: file and place that they were read from.
        prefix: stands before the keys, as `model.`.
    """
    try:
        return section.model_validate(dict(plain))
    except ValidationError as error:
        raise UserError(f"{source}: {_explain(error, section, prefix)}") from error


def nearest(name: str, names: Iterable[str]) -> str:
    """' (did you mean X?)' for the closest name, or nothing."""
    close = get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _explain(error: ValidationError, section: type[BaseModel], prefix: str) -> str:
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    key = prefix + ".".join(path)
    if first["type"] == "extra_forbidden":
        return f"unknown key {key!r}{nearest(path[-1], _names_beside(path, section))}"
    message = first["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if not path:
        return f"{prefix.removesuffix('.')}: {message}" if prefix else message
    if first["type"] == "missing":
        return f"{key} is missing"
    whole_section = isinstance(first["input"], dict)
    return f"{key}: {message}" if whole_section else f"{key}={first['input']!r}: {message}"


def _names_beside(path: list[str], section: type[BaseModel]) -> list[str]:
    for part in path[:-1]:
        annotation = section.model_fields[part].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            break
        section = annotation
    return list(section.model_fields)
