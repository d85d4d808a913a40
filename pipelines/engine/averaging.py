"""Averages of the weights over the training, and batch statistics that fit them.

`uniform` is the plain mean of the weights at the end of every epoch from a given one to the last:
stochastic weight averaging (Izmailov et al., arXiv 1803.05407), which LEViT's code calls "EMA".
`ema` is a true exponential moving average over the steps. Both are kept as one running average in
the weights' own precision, float32, beside the model.

The batch norms' running statistics belong to weights that are no longer those of the average.
Under `ema` they are averaged like the weights; after `uniform`, `estimate_batch_norms` measures
them anew.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn, update_bn

from pipelines.engine.schedule import ScheduleConfig
from pipelines.engine.weights import unwrap

AverageKind = Literal["uniform", "ema"]
BatchT = TypeVar("BatchT", bound=Mapping[str, Any])

_COUNT = "count"
_MEAN = "mean/"


@dataclass(frozen=True, kw_only=True)
class AverageConfig:
    """Which weights are averaged, and how."""

    kind: AverageKind = "uniform"
    """`uniform`: the mean over the ends of epochs; `ema`: an exponential average over steps."""
    start_epoch: float = 1
    """First epoch, counted from 1, that takes part."""
    decay: float = 0.999
    """Share of the old average in the new one at each step of `ema`."""

    def __post_init__(self) -> None:
        if self.kind not in ("uniform", "ema"):
            raise ValueError(f"kind is 'uniform' or 'ema', got {self.kind!r}")
        if self.start_epoch < 0:
            raise ValueError(f"start_epoch is not negative, got {self.start_epoch}")
        if not 0 < self.decay < 1:
            raise ValueError(f"decay lies in (0, 1), got {self.decay}")

    def includes(self, step: int, steps_per_epoch: int) -> bool:
        """Whether the weights after `step` steps take part."""
        if self.kind == "ema":
            return step > (self.start_epoch - 1) * steps_per_epoch
        return step % steps_per_epoch == 0 and step >= self.start_epoch * steps_per_epoch

    def members(self, schedule: ScheduleConfig) -> int:
        """How many sets of weights take part in the whole training."""
        if self.kind == "ema":
            first = math.floor((self.start_epoch - 1) * schedule.steps_per_epoch) + 1
            return max(0, schedule.total_steps - max(1, first) + 1)
        return max(0, schedule.epochs - max(1, math.ceil(self.start_epoch)) + 1)


class WeightAverage:
    """The running average of a model's weights.

    Memory: one copy of the parameters (and of the buffers under `ema`), on their device, from the
    first member on.
    """

    def __init__(self, model: nn.Module, config: AverageConfig, schedule: ScheduleConfig) -> None:
        """Of this model, wrapped in DistributedDataParallel or not; nothing is averaged yet.

        Raises:
            ValueError: no weights of the training would take part.
        """
        if config.members(schedule) == 0:
            raise ValueError(
                f"start_epoch={config.start_epoch} lies behind the last epoch, {schedule.epochs}"
            )
        self.config = config
        self.count = 0
        """Sets of weights that took part so far."""
        self._steps_per_epoch = schedule.steps_per_epoch
        self._model = unwrap(model)
        self._means: dict[str, Tensor] = {}
        self._merge = (
            get_swa_multi_avg_fn()
            if config.kind == "uniform"
            else get_ema_multi_avg_fn(config.decay)
        )

    def after_step(self, step: int) -> None:
        """Take in the model's weights, if those after `step` steps take part."""
        if not self.config.includes(step, self._steps_per_epoch):
            return
        current = self._current()
        if self.count == 0:
            self._means = {name: tensor.clone() for name, tensor in current.items()}
        else:
            self._merge(list(self._means.values()), list(current.values()), self.count)
        self.count += 1

    def copy_to_model(self) -> None:
        """Replace the model's weights by the average.

        Raises:
            ValueError: nothing has been averaged yet.
        """
        if self.count == 0:
            raise ValueError(
                f"no weights have been averaged; the first come at epoch {self.config.start_epoch}"
            )
        for name, tensor in self._current().items():
            tensor.copy_(self._means[name])

    def state_dict(self) -> dict[str, Tensor]:
        """The average as named tensors, and the number of its members, for a checkpoint."""
        means = {f"{_MEAN}{name}": tensor for name, tensor in self._means.items()}
        return {_COUNT: torch.tensor(self.count), **means}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `state_dict` gave.

        Raises:
            ValueError: an average of another model; this one is then as it was.
        """
        if _COUNT not in tensors:
            raise ValueError(f"an average lacks its {_COUNT!r}")
        current = self._current()
        saved = {k.removeprefix(_MEAN): t for k, t in tensors.items() if k.startswith(_MEAN)}
        count = int(tensors[_COUNT])
        expected = {name: tensor.shape for name, tensor in current.items()} if count else {}
        if {name: tensor.shape for name, tensor in saved.items()} != expected:
            differing = sorted(
                name
                for name in expected.keys() | saved.keys()
                if name not in saved or expected.get(name) != saved[name].shape
            )
            raise ValueError(f"average of another model: it differs in {', '.join(differing[:3])}")
        self._means = {
            name: torch.empty_like(current[name]).copy_(saved[name]) for name in expected
        }
        self.count = count

    def _current(self) -> dict[str, Tensor]:
        """The model's own tensors that are averaged, detached; counters are not averaged."""
        tensors: dict[str, Tensor] = dict(self._model.named_parameters())
        if self.config.kind == "ema":
            tensors |= {n: b for n, b in self._model.named_buffers() if b.is_floating_point()}
        return {name: tensor.detach() for name, tensor in tensors.items()}


class _Replay(nn.Module):
    """A model whose call on a batch is the training's forward pass."""

    def __init__(self, model: nn.Module, forward: Callable[[Any], object]) -> None:
        super().__init__()
        self.model = model
        self._forward_pass = forward
        self.train(model.training)

    def forward(self, batch: Mapping[str, Any]) -> None:
        self._forward_pass(batch)


def estimate_batch_norms(
    model: nn.Module, batches: Iterable[BatchT], forward: Callable[[BatchT], object]
) -> None:
    """Measure the batch norms' statistics anew: each becomes the mean over the batches.

    The model is in training mode meanwhile, so that whatever the training draws stays active;
    afterwards it is in the mode it was in. No gradient is computed.

    Args:
        model: wrapped in DistributedDataParallel or not; statistics are of this worker's batches.
        batches: what the training is fed, an epoch of it, say.
        forward: runs the model on a batch as a training step does, with the same arithmetic.

    Raises:
        ValueError: no batch; the statistics are then as they were.
    """
    remaining = iter(batches)
    first = next(remaining, None)
    if first is None:
        raise ValueError("batch norms cannot be estimated without a batch")
    update_bn(chain([first], remaining), _Replay(unwrap(model), forward))
