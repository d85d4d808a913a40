"""The typed description of an experiment.

A recipe is one YAML file; `key.sub=value` on the command line overrides it. Unknown keys are
refused with the nearest name. `pipelines.recipe_file` reads and writes the files.
"""

from dataclasses import MISSING, fields
from functools import lru_cache
from typing import Annotated, Any, Self, get_type_hints

from pydantic import Field, create_model, model_validator
from pydantic.functional_validators import BeforeValidator

from pipelines.recipe_sections import (
    AugmentSection,
    BatchSection,
    DataSection,
    DrawnSection,
    EmbedSection,
    EvaluateSection,
    GallerySection,
    InputSection,
    Name,
    RegistrySection,
    Section,
    TuneSection,
)
from pipelines.recipe_training import (
    AverageSection,
    LossSection,
    OptimSection,
    ScheduleSection,
    TrainSection,
    UnfreezeSection,
)

WEIGHTS_SUFFIX = "_weights"
VIEWS = "view_count"
EMBEDDING_PREFIX = "embed_"
"""A model's options with this prefix choose what of the network is the embedding; no weight and no
loss depends on them."""


class ModelSection(Section):
    """The network: its registered name, and that system's own options beside it."""

    name: str
    """Name in `reid models`."""

    def options(self) -> dict[str, Any]:
        """The keyword arguments of `reid_models.create_model`, without the name."""
        return {k: v for k, v in dict(self).items() if k != "name"}

    def embedding_options(self) -> dict[str, Any]:
        """The options that choose what is the embedding, which a trained model may change."""
        return {k: v for k, v in self.options().items() if k.startswith(EMBEDDING_PREFIX)}

    def weights_files(self) -> dict[str, str]:
        """Options that name a file of pretrained weights ("timm" is none), and the file."""
        return {
            k: v
            for k, v in self.options().items()
            if k.endswith(WEIGHTS_SUFFIX) and v not in (None, "timm")
        }


@lru_cache
def model_section(name: str) -> type[ModelSection]:
    """The section of one system: the fields of its options dataclass, checked by that class."""
    import reid_models

    options = reid_models.model_options(name)
    hints = get_type_hints(options)
    columns: dict[str, Any] = {
        f.name: (hints[f.name], ... if f.default is MISSING else f.default) for f in fields(options)
    }

    def check(self: ModelSection) -> ModelSection:
        options(**self.options())
        views = self.options().get(VIEWS, 0)
        if views > 1:
            raise ValueError(
                f"{VIEWS}={views}: the pipeline feeds cameras only; a network takes views from "
                "Python, so leave it at 0"
            )
        return self

    section = create_model(
        f"ModelSection_{name}",
        __base__=ModelSection,
        __validators__={"check_options": model_validator(mode="after")(check)},  # type: ignore[dict-item]
        **columns,
    )
    return section


def _model_of_name(value: object) -> object:
    if isinstance(value, ModelSection) or not isinstance(value, dict):
        return value
    import reid_models

    name = value.get("name")
    if name not in reid_models.list_models():
        raise ValueError(
            f"unknown model {name!r}; there are {', '.join(reid_models.list_models())}"
        )
    return model_section(name).model_validate(value)


class Recipe(Section):
    """An experiment from images to a promoted model version."""

    recipe: Name
    """Name of the recipe; part of the names of runs and galleries."""
    dataset: str = "drawn"
    """Layout the images lie in, NAME or NAME:VARIANT; see `reid datasets`."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 1
    """Seeds initial weights, batches, augmentation and dropout."""
    model: Annotated[ModelSection, BeforeValidator(_model_of_name)]
    data: DataSection = DataSection()
    drawn: DrawnSection = DrawnSection()
    input: InputSection = InputSection()
    augment: AugmentSection = AugmentSection()
    batch: BatchSection = BatchSection()
    loss: LossSection = LossSection()
    optim: OptimSection = OptimSection()
    schedule: ScheduleSection = ScheduleSection()
    average: AverageSection = AverageSection()
    unfreeze: UnfreezeSection = UnfreezeSection()
    train: TrainSection = TrainSection()
    embed: EmbedSection = EmbedSection()
    evaluate: EvaluateSection = EvaluateSection()
    gallery: GallerySection = GallerySection()
    registry: RegistrySection = RegistrySection()
    tune: TuneSection = TuneSection()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.batch.identities % self.train.workers:
            raise ValueError(
                f"batch.identities={self.batch.identities} is not a multiple of "
                f"train.workers={self.train.workers}"
            )
        self._check_epochs()
        return self

    def _check_epochs(self) -> None:
        from pipelines.engine import AverageConfig, ScheduleConfig  # torch, as for the model

        try:
            schedule = ScheduleConfig(
                epochs=self.train.epochs,
                steps_per_epoch=self.train.steps_per_epoch or 1,
                **self.schedule.model_dump(),
            )
        except ValueError as error:
            raise ValueError(f"schedule: {error}") from error
        average = self.average.model_dump()
        if average["kind"] != "none" and AverageConfig(**average).members(schedule) == 0:
            raise ValueError(
                f"average.start_epoch={self.average.start_epoch:g} lies behind the last epoch, "
                f"train.epochs={self.train.epochs}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values that YAML and JSON hold; `Recipe.model_validate` takes them back."""
        plain = self.model_dump(mode="json")
        plain["model"] = self.model.model_dump(mode="json")
        return plain

    @property
    def title(self) -> str:
        """First part of the names of the folders that the stages own."""
        return f"{self.recipe}-{self.dataset_title}"

    @property
    def dataset_title(self) -> str:
        """The dataset as a part of names of folders, models and MLflow's data sets."""
        return self.dataset.replace(":", "-")

    @property
    def protocol(self) -> str:
        """Name of the evaluation's protocol; a loaded recipe has its dataset's, unless it names
        one."""
        return self.evaluate.protocol or "market"

    @property
    def model_name(self) -> str:
        """Name under which versions are registered."""
        return self.registry.name or self.title
