"""Recipe files: YAML in, checked recipe out, with `key.sub=value` overrides on top.

Order of precedence: the recipe's own keys, then its `dataset_overrides` for the chosen dataset,
then those of the chosen experiment, then the command line.
"""

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml

from pipelines.datasets import find_dataset
from pipelines.errors import UserError
from pipelines.experiments import RecipeFile, parse_recipe_file
from pipelines.recipe import ModelSection, Recipe, model_section
from pipelines.recipe_sections import Section
from pipelines.safe_yaml import load
from pipelines.section_check import check_section, nearest

SUFFIXES = (".yaml", ".yml")
AnySection = TypeVar("AnySection", bound=Section)


def list_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("pipelines").joinpath("recipes")
    return sorted(Path(f.name).stem for f in folder.iterdir() if f.name.endswith(".yaml"))


def open_recipe(name: str) -> tuple[RecipeFile, str | None]:
    """The file of `RECIPE`, `RECIPE/EXPERIMENT`, `FILE.yaml` or `FILE.yaml/EXPERIMENT`, and the
    name of its experiment. A name of a file that is there means that file."""
    head, slash, tail = name.rpartition("/")
    if not slash and not name.endswith(SUFFIXES):
        return _parse_shipped(name), None
    if head.endswith(SUFFIXES):
        file = _parse_path(head)
    elif "/" in head or name.endswith(SUFFIXES) or Path(name).is_file():
        return _parse_path(name), None
    else:
        file = _parse_shipped(head)
    file.require(tail)
    return file, tail


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of this name or file, with the overrides applied and every value checked."""
    file, experiment = open_recipe(name)
    changes = [_parse_override(text) for text in overrides]
    dataset = next((str(v) for k, v in reversed(changes) if k == ["dataset"]), None)
    plain = file.resolve(experiment, dataset)
    for path, value in changes:
        _assign(plain, path, value)
    source = file.source if experiment is None else f"{file.source}: experiment {experiment}"
    return check_recipe(_completed(check_recipe(plain, source)), source)


def _completed(recipe: Recipe) -> dict[str, Any]:
    """The dataset's protocol where none is chosen; absolute paths, since workers and later commands
    run in other folders; a file of weights that is not there is refused now."""
    plain = recipe.to_dict()
    if recipe.evaluate.protocol is None:
        plain["evaluate"]["protocol"] = find_dataset(recipe.data.target or recipe.dataset)[
            0
        ].protocol
    if recipe.embed.model is not None and "://" not in recipe.embed.model:
        plain["embed"]["model"] = str(Path(recipe.embed.model).expanduser().absolute())
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
    return check_section(Recipe, checked, source)


def _check_model(plain: Mapping[str, Any], source: str) -> ModelSection:
    import reid_models  # torch and timm: only where a recipe is checked, not in data workers

    name, names = plain.get("name"), reid_models.list_models()
    if name not in names:
        raise UserError(
            f"{source}: model.name={name!r}: no such model{nearest(str(name), names)}; "
            f"there are {', '.join(names)}"
        )
    return check_section(model_section(str(name)), plain, source, prefix="model.")


def section_of_overrides(kind: type[AnySection], name: str, overrides: Sequence[str]) -> AnySection:
    """A section by itself, of `NAME.key=value` overrides alone."""
    plain: dict[str, Any] = {name: {}}
    for text in overrides:
        path, value = _parse_override(text)
        if path[0] != name or len(path) == 1:
            raise UserError(f"{text!r}: only {name}.KEY=VALUE means something here")
        _assign(plain, path, value)
    return check_section(kind, plain[name], "command line", prefix=f"{name}.")


def dump_recipe(recipe: Recipe) -> str:
    """YAML that `load_recipe` reads back to the same recipe."""
    return yaml.safe_dump(recipe.to_dict(), sort_keys=False, allow_unicode=True)


def _parse_path(name: str) -> RecipeFile:
    path = Path(name)
    if not path.is_file():
        raise UserError(f"{name}: no such recipe file")
    try:
        return parse_recipe_file(path.read_text(encoding="utf-8"), name)
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: not a text file in UTF-8 ({error.reason})") from error


def _parse_shipped(name: str) -> RecipeFile:
    names = list_recipes()
    if name not in names:
        raise UserError(
            f"unknown recipe {name!r}{nearest(name, names)}; there are {', '.join(names)}, "
            "or give the path of a .yaml file"
        )
    file = resources.files("pipelines").joinpath("recipes", f"{name}.yaml")
    return parse_recipe_file(file.read_text(encoding="utf-8"), f"recipe {name}")


def _parse_override(text: str) -> tuple[list[str], Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"{text!r} is not an override; write key.sub=value")
    try:
        return key.split("."), load(value)
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
