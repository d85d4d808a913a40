"""What a recipe file holds beside its recipe: changes by dataset, experiments, departures.

An experiment is a published training, or one of your own: a dataset, the keys in which it differs,
and the figures that were published for it. `RECIPE/EXPERIMENT` names it. Order of precedence: the
recipe's own keys, its `dataset_overrides` for the chosen dataset, the experiment's keys. Those of a
dataset hold for its variants too; those of `NAME:VARIANT` come after them.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

import yaml
from pydantic import Field, model_validator

from pipelines.errors import UserError
from pipelines.recipe_sections import Name, Section
from pipelines.safe_yaml import load
from pipelines.section_check import check_section, nearest

DATASET_OVERRIDES = "dataset_overrides"
EXPERIMENTS = "experiments"
DEPARTURES = "departures"
PUBLISHED = "published"
Plain = dict[str, Any]


class Published(Section):
    """What was published about an experiment."""

    source: str
    """Where it was published."""
    figures: dict[str, float] = Field(default_factory=dict)
    """Figures of the whole embedding in percent: mAP, R1, R5, ..., NMI; empty where
    none was published."""
    features: dict[str, tuple[float, float]] = Field(default_factory=dict)
    """mAP and R1, in percent, of single features of the network."""
    ap: Literal["step", "trapezoid", "top10", "unknown"] | None = None
    """How the average precision behind mAP was taken: `step` takes the precision at each hit,
    `trapezoid` the mean of those before and at it, `top10` looks at ten answers only and divides
    by the hits among them. None where there is no mAP."""
    note: str | None = None
    """What is to be known about the figures."""

    @model_validator(mode="after")
    def _ap_goes_with_map(self) -> "Published":
        if ("mAP" in self.figures or bool(self.features)) != (self.ap is not None):
            raise ValueError(
                f"ap goes with an mAP among the figures, got ap={self.ap!r} and "
                f"{list(self.figures)}"
            )
        return self


class _Named(Section):
    name: Name


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One experiment of a recipe file."""

    changes: Plain
    """The recipe's keys that it sets."""
    published: Published | None


@dataclass(frozen=True, kw_only=True)
class RecipeFile:
    """A recipe file, taken apart; the recipe's keys are not checked yet."""

    source: str
    """What to call the file in an error."""
    keys: Plain
    """The recipe's own keys."""
    by_dataset: Mapping[str, Plain]
    """Changes by dataset, NAME or NAME:VARIANT."""
    experiments: Mapping[str, Experiment]
    """Experiments by name, in the order of the file."""
    departures: tuple[str, ...]
    """Where the recipe departs from what was published, a sentence each."""

    def require(self, experiment: str | None) -> None:
        """Raise `UserError`, with the nearest name, unless there is such an experiment."""
        if experiment is None or experiment in self.experiments:
            return
        if not self.experiments:
            raise UserError(f"{self.source}: has no experiments, so none called {experiment!r}")
        raise UserError(
            f"{self.source}: unknown experiment {experiment!r}"
            f"{nearest(experiment, self.experiments)}; `reid recipes` lists them"
        )

    def resolve(self, experiment: str | None = None, dataset: str | None = None) -> Plain:
        """The keys of the recipe, or of an experiment, for its own or another dataset."""
        self.require(experiment)
        plain = deepcopy(self.keys)
        changes = {} if experiment is None else dict(self.experiments[experiment].changes)
        chosen = str(dataset or changes.get("dataset", plain.get("dataset")))
        for name in dict.fromkeys((chosen.partition(":")[0], chosen)):
            merge(plain, self.by_dataset.get(name, {}))
        merge(plain, changes)
        if experiment is not None:
            plain["recipe"] = f"{plain.get('recipe')}-{experiment}"
        return plain


def parse_recipe_file(text: str, source: str) -> RecipeFile:
    """The parts of a recipe file; `UserError` where it is not YAML or not laid out as one."""
    try:
        plain = load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{source}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(plain, dict):
        raise UserError(
            f"{source}: a recipe is a mapping of keys; this holds {type(plain).__name__}"
        )
    departures = plain.pop(DEPARTURES, None) or []
    if not isinstance(departures, list) or not all(isinstance(s, str) for s in departures):
        raise UserError(f"{source}: {DEPARTURES} is a list of sentences")
    by_dataset = _tables(plain, DATASET_OVERRIDES, "dataset names", source)
    experiments = _tables(plain, EXPERIMENTS, "names of experiments", source)
    return RecipeFile(
        source=source,
        keys=plain,
        by_dataset=by_dataset,
        experiments={n: _experiment(n, table, source) for n, table in experiments.items()},
        departures=tuple(departures),
    )


def _tables(plain: Plain, key: str, names: str, source: str) -> dict[str, Plain]:
    """Taken out of the file: a mapping of names to keys of the recipe; none of them is empty."""
    tables = plain.pop(key, None) or {}
    if not isinstance(tables, dict) or not all(
        isinstance(table, dict | None) for table in tables.values()
    ):
        raise UserError(f"{source}: {key} is a mapping of {names} to keys of the recipe")
    return {str(name): table or {} for name, table in tables.items()}


def _experiment(name: str, table: Plain, source: str) -> Experiment:
    place = f"{source}: experiment {name}"
    check_section(_Named, {"name": name}, place)
    if "recipe" in table:
        raise UserError(f"{place}: its recipe is named {name}; take the key `recipe` out")
    changes = {key: value for key, value in table.items() if key != PUBLISHED}
    published = table.get(PUBLISHED)
    if published is None:
        return Experiment(changes=changes, published=None)
    if not isinstance(published, dict):
        raise UserError(f"{place}: {PUBLISHED} is a mapping, with figures, ap and source")
    checked = check_section(Published, published, place, prefix=f"{PUBLISHED}.")
    return Experiment(changes=changes, published=checked)


def merge(plain: Plain, change: Mapping[str, Any]) -> None:
    """Change `plain` in place: sections key by key, everything else as a whole."""
    for key, value in change.items():
        if isinstance(value, Mapping) and isinstance(plain.get(key), dict):
            merge(plain[key], value)
        else:
            plain[key] = deepcopy(value)
