"""The units of LA-Transformer: row pooling, GELT, and blockwise unfreezing.

Source: Sharma, Kapil and Chapman, "Person Re-Identification with a Locally Aware
Transformer", arXiv 2106.03720, with the numbers of the official code SiddhantKapil/LA-Transformer.

Shapes: B batch, D token dim, h w rows and columns of the patch grid.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from reid_models.vit_branch import VitBranch

LambdaSide = Literal["local", "global"]


def pool_rows(map_BDhw: Tensor) -> Tensor:
    """Mean of each row of patches: [B, D, h, w] -> [B, h, D]."""
    return map_BDhw.mean(dim=3).transpose(1, 2)


def globally_enhanced_local_tokens(
    rows_BhD: Tensor, class_token_BD: Tensor, *, factor: float, factor_on: LambdaSide
) -> Tensor:
    """GELT: each pooled row mixed with the class token, [B, h, D] and [B, D] -> [B, h, D].

    Args:
        rows_BhD: pooled rows q.
        class_token_BD: class token g.
        factor: the lambda of the formulas, at least 0.
        factor_on: the side that lambda weighs: `(g + lambda q) / (1 + lambda)` for "local",
            `(q + lambda g) / (1 + lambda)` for "global".
    """
    global_B1D = class_token_BD.unsqueeze(1)
    if factor_on == "local":
        return (global_B1D + factor * rows_BhD) / (1 + factor)
    return (rows_BhD + factor * global_B1D) / (1 + factor)


@dataclass(frozen=True, kw_only=True)
class UnfreezeSchedule:
    """Blockwise fine-tuning: all transformer blocks start frozen and open from the last on.

    The defaults are those of the official code, whose first call, before any training, opens two
    blocks at once. `start=1` opens them one by one.
    """

    start: int = 2
    """Blocks that the first call opens; every later call opens one more."""

    every: int = 2
    """Epochs between two calls."""

    at_epoch0: bool = True
    """Whether the first call comes before epoch 0; else all blocks rest for `every` epochs."""

    def __post_init__(self) -> None:
        for name in ("start", "every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def calls(self, epoch: int) -> int:
        """Calls made by the time that the epoch (counted from 0) is trained.

        Raises:
            ValueError: a negative epoch.
        """
        if epoch < 0:
            raise ValueError(f"epochs are counted from 0, got {epoch}")
        return epoch // self.every + self.at_epoch0

    def open_blocks(self, epoch: int) -> int:
        """Blocks open in the epoch, counted from the last; may exceed the network's depth."""
        calls = self.calls(epoch)
        return self.start + calls - 1 if calls else 0


def trainable_parameters(
    model: nn.Module, schedule: UnfreezeSchedule, epoch: int
) -> frozenset[str]:
    """Names of the parameters that train in an epoch (counted from 0).

    The schedule rules over the blocks of the model's transformer branches. Everything else is
    trainable whenever its `requires_grad` says so: patch embedding, class token, position
    embedding, final norm and heads. The answer does not depend on which blocks are frozen now, so
    that a resumed training finds the same one.

    Raises:
        ValueError: the model has no transformer branch.
    """
    branches = [(n, m) for n, m in model.named_modules() if isinstance(m, VitBranch)]
    if not branches:
        raise ValueError(
            f"{type(model).__name__} has no transformer branch with blocks to unfreeze"
        )
    open_blocks = schedule.open_blocks(epoch)
    ruled: set[str] = set()
    opened: set[str] = set()
    for branch_name, branch in branches:
        blocks = branch.trunk.blocks
        first_open = max(0, len(blocks) - open_blocks)
        prefix = f"{branch_name}." if branch_name else ""
        for index, block in enumerate(blocks):
            names = {f"{prefix}trunk.blocks.{index}.{name}" for name, _ in block.named_parameters()}
            ruled |= names
            if index >= first_open:
                opened |= names
    others = {name for name, p in model.named_parameters() if p.requires_grad and name not in ruled}
    return frozenset(opened | others)
