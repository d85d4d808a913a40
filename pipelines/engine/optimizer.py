"""The optimiser over two groups of parameters.

FusionReID's code makes a group of every tensor, but its rates differ only between tensors whose
name contains "bias" and the others; two groups give the same updates and let torch batch the
arithmetic.
"""

from collections.abc import Iterable
from typing import Any, Literal

from torch import nn, optim

from pipelines.engine.schedule import ScheduleConfig, learning_rate, schedule_epoch

OptimizerName = Literal["sgd", "adam", "adamw"]


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
) -> optim.Optimizer:
    """An optimiser over the trainable parameters of the model.

    Args:
        model: on the device where it will be trained.
        name: `sgd` (no Nesterov), `adam` (the decay is added to the gradient) or `adamw`.
        lr: base rate of the parameters whose name does not contain "bias".
        momentum: momentum of SGD; Adam and AdamW keep their betas of 0.9 and 0.999.
        weight_decay: decay on every parameter, biases and norms too.
        bias_lr_factor: the rate of the others is `lr` times this.

    Raises:
        ValueError: for an unknown name, or a model without a parameter to train.
    """
    groups = parameter_groups(model, lr=lr, bias_lr_factor=bias_lr_factor)
    if name == "sgd":
        return optim.SGD(groups, lr=lr, momentum=momentum, weight_decay=weight_decay)
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
