"""Recipe files: YAML in, checked recipe out, with `key.sub=value` overrides on top.

Order of precedence: the recipe's own keys, then its `dataset_overrides` for the chosen dataset,
then the command line.
"""

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from pipelines.errors import UserError
from pipelines.recipe import ModelSection, Recipe, model_section
from pipelines.recipe_sections import Section

DATASET_OVERRIDES = "dataset_overrides"
SectionT = TypeVar("SectionT", bound=Section)


def list_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("pipelines").joinpath("recipes")
    return sorted(Path(f.name).stem for f in folder.iterdir() if f.name.endswith(".yaml"))


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of this name or file, with the overrides applied and every value checked."""
    text, source = _read(name)
    try:
        plain = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{source}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(plain, dict):
        raise UserError(
            f"{source}: a recipe is a mapping of keys; this holds {type(plain).__name__}"
        )
    by_dataset = _dataset_overrides(plain, source)
    changes = [_parse_override(text) for text in overrides]
    dataset = next((v for k, v in reversed(changes) if k == ["dataset"]), plain.get("dataset"))
    _merge(plain, by_dataset.get(str(dataset)) or {})
    for path, value in changes:
        _assign(plain, path, value)
    return check_recipe(_with_absolute_weights(check_recipe(plain, source)), source)


def _dataset_overrides(plain: dict[str, Any], source: str) -> dict[str, dict[str, Any]]:
    """Taken out of the recipe: the changes by dataset name."""
    by_dataset = plain.pop(DATASET_OVERRIDES, None) or {}
    if not isinstance(by_dataset, dict) or not all(
        isinstance(change, dict | None) for change in by_dataset.values()
    ):
        raise UserError(
            f"{source}: {DATASET_OVERRIDES} is a mapping of dataset names to keys of the recipe"
        )
    return {str(name): change for name, change in by_dataset.items()}


def _with_absolute_weights(recipe: Recipe) -> dict[str, Any]:
    """Workers and later commands run in other folders; a file that is not there is refused now."""
    plain = recipe.to_dict()
    for option, file in recipe.model.weights_files().items():
        path = Path(file).expanduser().absolute()
        if not path.is_file():
            raise UserError(
                f"model.{option}={file}: no such file; give a weights file, or `timm` to download"
            )
        plain["model"][option] = str(path)
    return plain


def check_recipe(plain: Mapping[str, Any], source: str) -> Recipe:
    """The checked recipe; a `UserError` names the first key that is wrong and the nearest right
    one."""
    checked = dict(plain)
    if isinstance(checked.get("model"), Mapping):
        checked["model"] = _check_model(checked["model"], source)
    return _check(Recipe, checked, source)


def _check_model(plain: Mapping[str, Any], source: str) -> ModelSection:
    import reid_models  # torch and timm: only where a recipe is checked, not in data workers

    name, names = plain.get("name"), reid_models.list_models()
    if name not in names:
        raise UserError(
            f"{source}: model.name={name!r}: no such model{nearest(str(name), names)}; "
            f"there are {', '.join(names)}"
        )
    return _check(model_section(str(name)), plain, source, prefix="model.")


def _check(
    section: type[SectionT], plain: Mapping[str, Any], source: str, *, prefix: str = ""
) -> SectionT:
    try:
        return section.model_validate(dict(plain))
    except ValidationError as error:
        raise UserError(f"{source}: {_explain(error, section, prefix)}") from error


def dump_recipe(recipe: Recipe) -> str:
    """YAML that `load_recipe` reads back to the same recipe."""
    return yaml.safe_dump(recipe.to_dict(), sort_keys=False, allow_unicode=True)


def _read(name: str) -> tuple[str, str]:
    if name.endswith((".yaml", ".yml")) or "/" in name:
        path = Path(name)
        if not path.is_file():
            raise UserError(f"{name}: no such recipe file")
        try:
            return path.read_text(encoding="utf-8"), name
        except UnicodeDecodeError as error:
            raise UserError(f"{name}: not a text file in UTF-8 ({error.reason})") from error
    names = list_recipes()
    if name not in names:
        raise UserError(
            f"unknown recipe {name!r}{nearest(name, names)}; there are {', '.join(names)}, "
            "or give the path of a .yaml file"
        )
    file = resources.files("pipelines").joinpath("recipes", f"{name}.yaml")
    return file.read_text(encoding="utf-8"), f"recipe {name}"


def nearest(name: str, names: Iterable[str]) -> str:
    """' (did you mean X?)' for the closest name, or nothing."""
    close = get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _parse_override(text: str) -> tuple[list[str], Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"{text!r} is not an override; write key.sub=value")
    try:
        return key.split("."), yaml.safe_load(value)
    except yaml.YAMLError:
        return key.split("."), value


def _assign(plain: dict[str, Any], path: list[str], value: object) -> None:
    for part in path[:-1]:
        inner = plain.setdefault(part, {})
        if not isinstance(inner, dict):
            raise UserError(f"{'.'.join(path)}: {part!r} is a value, not a section")
        plain = inner
    if isinstance(plain.get(path[-1]), dict) and not isinstance(value, dict):
        raise UserError(f"{'.'.join(path)} is a section; set one of its keys instead")
    plain[path[-1]] = value


def _merge(plain: dict[str, Any], change: Mapping[str, Any]) -> None:
    for key, value in change.items():
        if isinstance(value, Mapping) and isinstance(plain.get(key), dict):
            _merge(plain[key], value)
        else:
            plain[key] = value


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
