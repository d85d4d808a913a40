"""The sections of a recipe that say how the network learns: loss, optimiser, schedule, averages,
blockwise unfreezing, and the run itself.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipelines.recipe_sections import Positive, Precision, Section


class LossSection(Section):
    """Sum over the model's heads of identification and metric losses."""

    id_weight: Annotated[float, Field(ge=0.0)] = 1.0
    """Weight of the label-smoothed cross entropy."""
    id_loss: Literal["softmax", "arcface", "cosface", "circle"] = "softmax"
    """What the cross entropy takes: the heads' linear scores, or a margin product of cosines."""
    id_margin: Annotated[float, Field(ge=0.0)] | None = None
    """Margin of that product, in radians for arcface; none takes its paper's."""
    id_scale: Annotated[float, Field(gt=0.0)] | None = None
    """Scale of that product; none takes its paper's."""
    triplet_weight: Annotated[float, Field(ge=0.0)] = 1.0
    """Weight of the batch-hard triplet loss."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Share of the target spread over all identities."""
    margin: Annotated[float, Field(gt=0.0)] | None = None
    """Triplet margin; without one the soft margin log(1 + exp(d_ap - d_an)) is used."""
    normalize_triplet: bool = False
    """Compare features of unit length in the triplet loss."""
    across_workers: bool = False
    """Form triplets in the batch of all workers together, else in each worker's own."""
    lone_anchors: bool = False
    """In the triplet loss, let an image without another of its identity in the batch, as
    `batch.sampler=shuffle` makes them, be its own positive, at distance zero; else it forms no
    triplet."""
    center_weight: Annotated[float, Field(ge=0.0)] = 0.0
    """Weight of a center loss beside every triplet term; 0 for none."""

    @model_validator(mode="after")
    def _something_to_learn(self) -> Self:
        if self.id_weight == 0 and self.triplet_weight == 0:
            raise ValueError("id_weight and triplet_weight are both 0: nothing would be learned")
        return self

    @model_validator(mode="after")
    def _margin_of_a_product(self) -> Self:
        if self.id_loss == "softmax" and (self.id_margin, self.id_scale) != (None, None):
            raise ValueError(
                f"id_margin={self.id_margin} and id_scale={self.id_scale} have no effect on "
                "id_loss=softmax; choose arcface, cosface or circle, or leave them out"
            )
        return self


class OptimSection(Section):
    """The optimiser."""

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    """Update rule; `momentum` and `nesterov` are read by SGD only."""
    lr: Annotated[float, Field(gt=0.0)] = 0.005
    """Base learning rate."""
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    """Momentum of SGD."""
    nesterov: bool = False
    """Look ahead along the momentum."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 1e-4
    """Weight decay on every parameter."""
    bias_lr_factor: Annotated[float, Field(gt=0.0)] = 2.0
    """Bias parameters learn at this multiple of the base rate."""
    grad_clip: Annotated[float, Field(gt=0.0)] | None = None
    """Largest norm of the whole gradient; none leaves it as it is."""
    freeze: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Parameters whose name contains one of these stay as they are. A number between dots or at an
    end counts whole: `blocks.1` leaves blocks.10 to train."""

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> Self:
        if self.nesterov and (self.name != "sgd" or self.momentum == 0):
            raise ValueError(
                f"nesterov=true is for name=sgd with momentum, got name={self.name} with "
                f"momentum={self.momentum}"
            )
        return self


class ScheduleSection(Section):
    """Learning rate: linear warm-up, then a cosine or steps, then held if asked to."""

    shape: Literal["cosine", "step"] = "cosine"
    """What follows the warm-up."""
    warmup_epochs: Annotated[float, Field(ge=0.0)] = 10
    """Length of the warm-up in epochs."""
    warmup_start_lr: Annotated[float, Field(ge=0.0)] = 5e-5
    """Rate at epoch 0."""
    min_lr: Annotated[float, Field(ge=0.0)] = 1e-5
    """Rate where the cosine ends."""
    cosine_epochs: Annotated[float, Field(gt=0.0)] | None = None
    """Epoch where the cosine ends; none for the last."""
    cosine_after_warmup: bool = False
    """Begin the cosine where the warm-up ends, else at epoch 0."""
    decay_factor: Annotated[float, Field(gt=0.0, le=1.0)] = 0.8
    """What each step of `shape: step` multiplies the rate with, the first before epoch 1."""
    decay_epochs: Annotated[float, Field(gt=0.0)] = 2
    """Epochs between two steps of `shape: step`."""
    hold_epoch: Annotated[float, Field(gt=0.0)] | None = None
    """Epoch from which on the rate stays as it is; none for never."""
    granularity: Literal["epoch", "step"] = "epoch"
    """Whether the rate changes at the start of an epoch or at every step."""


class AverageSection(Section):
    """Averaging of the weights over the training; the average is what the run leaves behind."""

    kind: Literal["none", "uniform", "ema"] = "none"
    """`uniform`: the mean of the weights at the ends of epochs, with batch norms estimated anew
    over one more epoch of batches (rank 0's share of them); `ema`: an exponential average over the
    steps."""
    start_epoch: Annotated[float, Field(ge=0.0)] = 1
    """First epoch, counted from 1, that takes part."""
    decay: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.999
    """Share of the old average in the new one at each step of `ema`."""


class UnfreezeSection(Section):
    """Blockwise fine-tuning: the transformer's blocks start frozen and open from the last on."""

    start: Positive | None = None
    """Blocks that open first; every later opening adds one. None trains the whole network from
    the start."""
    every: Positive = 2
    """Epochs between two openings."""
    at_epoch0: bool = True
    """Whether the first opening comes before the first epoch, else after `every` epochs."""


class TrainSection(Section):
    """The training run."""

    epochs: Positive = 180
    """Epochs; one is as many steps as it takes to show the number of training images."""
    steps_per_epoch: Positive | None = None
    """Overrides the length of an epoch, in steps."""
    workers: Positive = 1
    """Ray Train workers, one GPU each where the cluster has GPUs."""
    precision: Precision = "fp32"
    """Arithmetic of the forward pass; losses and weights stay fp32."""
    checkpoint_epochs: Annotated[float, Field(gt=0.0)] = 1.0
    """Epochs between checkpoints."""
    keep_checkpoints: Positive = 2
    """Newest checkpoints that are kept."""
    validate_epochs: Positive = 1
    """Epochs between validations, where `data.holdout` keeps identities for them."""
    log_steps: Positive = 10
    """Steps between two reports of the losses."""
    max_failures: Annotated[int, Field(ge=0)] = 2
    """Worker failures after which the run gives up; each goes on from the last checkpoint."""
