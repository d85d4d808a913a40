"""The sections of a recipe: every setting with its type, range, default and meaning.

Those of the training itself are in `pipelines.recipe_training`; the model's own section is made
from its options in `pipelines.recipe`.
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Size = tuple[Positive, Positive]
Precision = Literal["fp32", "bf16"]
Protocol = Literal[
    "market",
    "any_camera",
    "vehicleid",
    "leave_one_out",
    "university",
    "latf_legacy",
    "veri_lists",
]
Name = Annotated[str, Field(pattern=r"^\w[\w.-]*$", max_length=100)]
"""Part of the names of folders and of registered models."""


class Section(BaseModel):
    """A part of the recipe: immutable, every field documented, no unknown key."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True
    )


class DrawnSection(Section):
    """The drawn dataset (`dataset: drawn`): walking figures in Market-1501's layout."""

    train_identities: Positive = 60
    """Identities in the train split."""
    test_identities: Positive = 40
    """Identities in the query and gallery splits."""
    cameras: Positive = 4
    """Cameras; every identity is seen by all of them."""
    images_per_camera: Positive = 4
    """Images of one identity under one camera."""
    distractors: Annotated[int, Field(ge=0)] = 40
    """Gallery images of nobody who is asked for."""
    image_size: Size = (128, 64)
    """Height and width of the drawn images in pixels."""
    seed: int = 0
    """Another seed draws other people."""


class DataSection(Section):
    """Where the images come from and how they are packed."""

    root: str | None = None
    """Folder (or, for `dataset: table`, the CSV or Parquet file) of the dataset; of several, the
    one that holds them all."""
    sources: tuple[str, ...] = ()
    """Of `dataset: transfer`: the datasets to train on, NAME or NAME:VARIANT each."""
    target: str | None = None
    """Of `dataset: transfer`: the dataset to test on."""
    source_images: Literal["train", "all"] = "train"
    """Where several datasets are joined: `train` takes the train split of a source, `all` its
    query and gallery images too, but for junk and distractors."""
    roots: dict[str, str] = Field(default_factory=dict)
    """Where several datasets are joined: the place of one by its name, if it is not in `root`."""
    quarantine_limit: Share = 0.01
    """Share of unreadable images above which ingest stops."""
    rows_per_shard: Positive = 2048
    """Images a Parquet shard holds; whole identities stay together, so shards may be larger."""
    min_images: Positive = 2
    """Identities with fewer training images are left out of the batches."""
    holdout: Annotated[float, Field(ge=0.0, le=0.9)] = 0.0
    """Share of the train identities kept out of training to validate on."""


class InputSection(Section):
    """From encoded bytes to the tensor, the same for training, embedding and search."""

    image_size: Size = (256, 128)
    """Height and width the network sees, in pixels."""
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    """Resize filter; both are anti-aliased."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Mean of the pixel values in [0, 1], by channel."""
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Standard deviation of the pixel values in [0, 1], by channel."""


class AugmentSection(Section):
    """Training-time changes of an image; each draws from (seed, step, position)."""

    flip: Share = 0.5
    """Probability of a horizontal flip."""
    pad: Annotated[int, Field(ge=0)] = 10
    """Zero padding in pixels before the random crop back to the input size."""
    erase: Share = 0.5
    """Probability of random erasing with per-pixel noise."""
    erase_area: tuple[Share, Share] = (0.02, 1 / 3)
    """Smallest and largest share of the image that is erased."""
    erase_aspect: Annotated[float, Field(gt=0.0, le=1.0)] = 0.3
    """The aspect ratio of the erased box is drawn between this and its inverse."""

    @model_validator(mode="after")
    def _area_is_a_range(self) -> Self:
        low, high = self.erase_area
        if low > high:
            raise ValueError(f"erase_area={list(self.erase_area)} has its largest share first")
        return self


class BatchSection(Section):
    """The global batch: P identities of K images each, or as many images of anybody."""

    sampler: Literal["identities", "domains", "shuffle"] = "identities"
    """`identities` takes K images of each of P identities; `domains` takes as many identities of
    every domain; `shuffle` takes P K images in a random order of all, in which many may have no
    other image of their identity."""
    identities: Positive = 8
    """P; a multiple of `train.workers`, so that no identity is cut."""
    images: Annotated[int, Field(ge=2)] = 16
    """K; identities with fewer images repeat some."""
    views: dict[str, Positive] = Field(default_factory=dict)
    """How many of the K images are of which view, in this order; empty takes any. Other views, and
    identities that lack one of these, are not trained on."""

    @model_validator(mode="after")
    def _views_make_a_group(self) -> Self:
        if self.views and self.sampler == "shuffle":
            raise ValueError("views are counted by identity, which sampler=shuffle does not know")
        if self.views and sum(self.views.values()) != self.images:
            raise ValueError(
                f"views={self.views} are {sum(self.views.values())} images of an identity, "
                f"and images={self.images}; make them equal"
            )
        return self


class EmbedSection(Section):
    """From images to embeddings."""

    model: str | None = None
    """Folder of a trained or an imported model that embeds in place of the recipe's, which is then
    not trained. Its own options hold, those of `model` have no effect."""
    precision: Precision = "fp32"
    """Arithmetic of the network; `bf16` is about twice as fast where the processor has it."""
    batch_size: Positive = 128
    """Images a forward pass."""
    flip: bool = False
    """Add the embedding of the mirrored image before normalising."""
    workers: Positive = 1
    """Embedding actors, one GPU each where there are GPUs."""
    rows_per_part: Positive = 512
    """Rows of one output file; the unit that is repeated after a failure."""
    dtype: Literal["float32", "float16"] = "float32"
    """Storage type of the embeddings."""


class EvaluateSection(Section):
    """How the numbers are taken."""

    protocol: Protocol | None = None
    """Which gallery images count for a query; by default the dataset's own protocol, see `reid
    datasets`. `market` leaves out images of the query's identity under the query's camera,
    `any_camera` the query image alone; `vehicleid` draws its gallery; in `leave_one_out` every test
    image asks for all others; `university` adds the recall at 1 %; `latf_legacy` leaves out nothing
    and looks at ten answers; `veri_lists` goes by lists."""
    draws: Positive = 10
    """Draws of the gallery of `vehicleid`."""
    lists: str | None = None
    """Folder of the lists of `veri_lists`; by default `data.root`."""
    parts: tuple[str, ...] = ()
    """Parts of the embedding that are compared: names of a network's features, or START:STOP; none
    means all."""
    unit_parts: bool = False
    """Bring each part to unit length before all of them together."""
    expansion: Annotated[int, Field(ge=0)] = 0
    """Gallery images that are averaged into a query (alpha query expansion); 0 is none."""
    expansion_alpha: Annotated[float, Field(ge=0.0)] = 3.0
    """Power of the cosine with which such an image is weighed."""
    rerank: bool = False
    """Re-rank by k-reciprocal neighbours."""
    rerank_k1: Positive = 20
    """Neighbours whose reciprocity is asked for."""
    rerank_k2: Positive = 6
    """Neighbours whose encodings are averaged."""
    rerank_weight: Share = 0.3
    """Share of the original distance in the final one."""
    resamples: Annotated[int, Field(ge=0)] = 1000
    """Resamples of the queries behind the intervals; 0 takes none."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seeds draws and resamples."""
    by_camera: bool = True
    """Take the figures of every pair of cameras too."""
    workers: Positive = 1
    """Ray tasks that share the gallery; with 1 this process does it."""
    hold_mb: Annotated[int, Field(ge=0)] = 2048
    """Vectors of more megabytes stay on disk and are read block by block, four times."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where scores are computed; `auto` is the GPU if there is one."""


class GallerySection(Section):
    """The index that is searched."""

    index: Literal["flat"] = "flat"
    """`flat` is exact inner-product search."""
    shards: Positive = 4
    """Number of shards."""


class RegistrySection(Section):
    """Tracking and the model registry."""

    experiment: str = "rayreid"
    """MLflow experiment."""
    name: Name | None = None
    """Registered model name; the default is made of the recipe's and the dataset's name."""
    promote: Literal["better", "always", "never"] = "better"
    """When `run` gives the new version the alias `champion`: `better` means no worse than the
    champion on the same data, or no champion yet."""


class TuneSection(Section):
    """The search over recipes."""

    trials: Positive = 8
    """Recipes to try."""
    epochs: Positive = 4
    """Epochs of a trial that is not stopped early."""
    concurrent: Positive = 1
    """Trials at a time. With more than one, which weak trials are stopped depends on the order in
    which they report."""
    holdout: Annotated[float, Field(gt=0.0, le=0.9)] = 0.3
    """Share of the train identities the trials are scored on."""
    grace_epochs: Positive = 1
    """Epochs before ASHA may stop a trial."""
    reduction_factor: Annotated[int, Field(ge=2)] = 2
    """ASHA keeps one trial in this many at each rung."""
