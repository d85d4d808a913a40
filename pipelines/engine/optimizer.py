"""The optimiser over two groups of parameters, and which parameters train.

FusionReID's code makes a group of every tensor, but its rates differ only between tensors whose
name contains "bias" and the others; two groups give the same updates and let torch batch the
arithmetic.
"""

import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Literal

from torch import nn, optim

from pipelines.engine.schedule import ScheduleConfig, learning_rate, schedule_epoch
from pipelines.engine.weights import unwrap

OptimizerName = Literal["sgd", "adam", "adamw"]


def freeze(model: nn.Module, parts: Sequence[str]) -> None:
    """Take the parameters whose name contains one of `parts` out of the training.

    A number that begins or ends a part, by itself or at a dot, counts whole: `blocks.1` is not in
    `blocks.10.weight`. Words need not: `stage1` is in `stage10.weight`.

    Comes before `build_optimizer`, and before the model is wrapped for distributed training. Batch
    norms in a frozen part still follow the data: their statistics are no parameters.

    Raises:
        ValueError: a part that no parameter's name contains.
    """
    for part in parts:
        pattern = _pattern(part)
        found = [p for name, p in model.named_parameters() if pattern.search(name)]
        if not found:
            children = ", ".join(name for name, _ in model.named_children())
            raise ValueError(
                f"{type(model).__name__} has no parameter whose name contains {part!r}; "
                f"its parts are {children}"
            )
        for parameter in found:
            parameter.requires_grad_(False)


def _pattern(part: str) -> re.Pattern[str]:
    """Finds the part in a parameter's name, its numbers as whole components."""
    words = part.split(".")
    before = r"(?<![^.])" if words[0].isdigit() else ""
    after = r"(?![^.])" if words[-1].isdigit() else ""
    return re.compile(f"{before}{re.escape(part)}{after}")


def set_trainable(model: nn.Module, names: Collection[str]) -> None:
    """Let just these parameters train in the next step, among those that the optimiser has.

    The others get no gradient, so the optimiser passes them over: no update, no decay, no momentum
    until they open. In DistributedDataParallel that takes `find_unused_parameters`, and a model
    that was wrapped with all of them trainable.

    Raises:
        ValueError: a name that is no parameter's.
    """
    parameters = dict(unwrap(model).named_parameters())
    if unknown := sorted(set(names) - parameters.keys()):
        raise ValueError(f"{type(unwrap(model)).__name__} has no parameter {unknown[0]!r}")
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in names)


def parameter_groups(model: nn.Module, *, lr: float, bias_lr_factor: float) -> list[dict[str, Any]]:
    """The trainable parameters as the groups `weight` and `bias`, each with its own `base_lr`."""
    weights: list[nn.Parameter] = []
    biases: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (biases if "bias" in name else weights).append(parameter)
    if not weights and not biases:
        raise ValueError(f"{type(model).__name__} has no parameter to train")
    named: Iterable[tuple[str, list[nn.Parameter], float]] = (
        ("weight", weights, lr),
        ("bias", biases, lr * bias_lr_factor),
    )
    return [
        {"params": parameters, "name": name, "lr": rate, "base_lr": rate}
        for name, parameters, rate in named
        if parameters
    ]


def build_optimizer(
    model: nn.Module,
    *,
    name: OptimizerName,
    lr: float,
    momentum: float,
    weight_decay: float,
    bias_lr_factor: float,
    nesterov: bool = False,
) -> optim.Optimizer:
    """An optimiser over the trainable parameters of the model.

    Args:
        model: on the device where it will be trained.
        name: `sgd`, `adam` (the decay is added to the gradient) or `adamw`.
        lr: base rate of the parameters whose name does not contain "bias".
        momentum: momentum of SGD; Adam and AdamW keep their betas of 0.9 and 0.999.
        weight_decay: decay on every parameter, biases and norms too.
        bias_lr_factor: the rate of the others is `lr` times this.
        nesterov: whether SGD looks ahead along its momentum.

    Raises:
        ValueError: for an unknown name, Nesterov without momentum or with another optimiser, or a
            model without a parameter to train.
    """
    if nesterov and (name != "sgd" or momentum == 0):
        raise ValueError(f"nesterov is for sgd with momentum, got {name} with momentum {momentum}")
    groups = parameter_groups(model, lr=lr, bias_lr_factor=bias_lr_factor)
    if name == "sgd":
        return optim.SGD(
            groups, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov
        )
    if name == "adam":
        return optim.Adam(groups, lr=lr, weight_decay=weight_decay)
    if name == "adamw":
        return optim.AdamW(groups, lr=lr, weight_decay=weight_decay)
    raise ValueError(f"unknown optimiser {name!r}; there are sgd, adam and adamw")


def set_learning_rates(optimizer: optim.Optimizer, config: ScheduleConfig, step: int) -> float:
    """Give every group its rate for this step (counted from 0); returns the first group's."""
    epoch = schedule_epoch(config, step)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(config, group["base_lr"], epoch)
    return float(optimizer.param_groups[0]["lr"])
