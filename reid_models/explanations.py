"""What can be looked at in a network, as the network itself names it.

`ReidModel.explanations` gives some of these; each knows how to turn what was seen of an image into
one value a cell of a grid.

Shapes: B batch, N tokens of a sequence with P prefix (class, register) tokens in front, Q queries,
K keys, h w rows and columns of a grid, E embedding dim.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from reid_models.attention_maps import AttentionMaps
from reid_models.vit_branch import VitBranch

Reader = Literal["class", "patches"]


@dataclass(frozen=True, kw_only=True)
class AttentionRollout:
    """How much a transformer's output reads of every input patch, over all blocks.

    Source: Abnar and Zuidema, "Quantifying Attention Flow in Transformers", arXiv 2005.00928.
    """

    title: str
    blocks: tuple[nn.Module, ...]
    """Transformer blocks with one self-attention each, first to last."""

    prefix_tokens: int
    """P; the class token is the first."""

    grid: tuple[int, int]
    reader: Reader = "class"
    """Whose output: the class token's, or the mean of the patch tokens."""

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """What to record."""
        return self.blocks

    def heat(self, maps: AttentionMaps) -> Tensor:
        """[B, h, w] float32: shares of the output, which add up to 1 with those of the prefix
        tokens."""
        attention = [_only_call(maps, block) for block in self.blocks]
        start_BN = attention[0].new_zeros(attention[0].shape[:2])
        if self.reader == "class":
            start_BN[:, 0] = 1
        else:
            start_BN[:, self.prefix_tokens :] = 1 / (self.grid[0] * self.grid[1])
        return roll_out(start_BN, attention)[:, self.prefix_tokens :].unflatten(1, self.grid)


@dataclass(frozen=True, kw_only=True)
class CrossAttention:
    """What one attention reads of another branch's tokens: heads and queries averaged."""

    title: str
    unit: nn.Module
    """Module that the attention runs in."""

    call: int
    """Which of the attentions in it, in the order of an image's pass; -1 is the last."""

    prefix_tokens: int = 0
    """Keys in front that have no place on the grid."""

    grid: tuple[int, int]
    """Of the keys."""

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """What to record."""
        return (self.unit,)

    def heat(self, maps: AttentionMaps) -> Tensor:
        """[B, h, w] float32: weights, which add up to 1 with those of the prefix tokens."""
        weights_BQK = maps[self.unit][self.call]
        return weights_BQK.mean(dim=1)[:, self.prefix_tokens :].unflatten(1, self.grid)


@dataclass(frozen=True, kw_only=True)
class GradCam:
    """Where a convolutional map speaks for a target.

    Source: Selvaraju et al., "Grad-CAM", arXiv 1610.02391, by the library captum.
    """

    title: str
    layer: nn.Module
    """Module that gives the map [B, C, h, w], once a pass."""

    def heat(
        self,
        model: nn.Module,
        images_BCHW: Tensor,
        cameras_B: Tensor | None,
        target: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """[B, h, w] float32, at least 0, in no unit.

        Args:
            model: in eval mode; one forward and one backward pass of it are run.
            images_BCHW, cameras_B: as `ReidModel.forward` takes them.
            target: embedding [B, E] -> what is asked for, [B].
        """
        from captum.attr import LayerGradCam  # imports matplotlib: only for those who ask

        cam = LayerGradCam(
            lambda images: target(model(images, cameras_B).embedding.float()), self.layer
        )
        # captum warns about images that it has to switch to gradients itself
        images_BCHW = images_BCHW.detach().clone().requires_grad_()
        with torch.enable_grad():
            heat_B1hw = cam.attribute(images_BCHW, relu_attributions=True)
        return heat_B1hw.detach().squeeze(1).float()


@dataclass(frozen=True, kw_only=True)
class PartSimilarity:
    """How alike two images are in each part of an embedding made of equal parts of the image, from
    top to bottom."""

    title: str
    parts: int

    def heat(self, embedding_BE: Tensor, other_BE: Tensor) -> Tensor:
        """[B, parts, 1]: cosine of each part to the other embedding's, -1 to 1."""
        own, other = (e.unflatten(1, (self.parts, -1)) for e in (embedding_BE, other_BE))
        return functional.cosine_similarity(own, other, dim=2).unsqueeze(2)


Explanation = AttentionRollout | CrossAttention | GradCam | PartSimilarity


def roll_out(start_BN: Tensor, attention: Sequence[Tensor]) -> Tensor:
    """Shares of the outputs, followed back through the blocks to the inputs, [B, N].

    Each block hands on half by its residual path and half by its attention, (A + I) / 2; the
    matrices are multiplied from the last block to the first, as a row vector.

    Args:
        start_BN: shares of the last block's output tokens.
        attention: [B, N, N] a block, first to last, heads averaged, rows of sum 1.
    """
    share_BN = start_BN
    for weights_BNN in reversed(attention):
        share_BN = (share_BN + (share_BN.unsqueeze(1) @ weights_BNN).squeeze(1)) / 2
    return share_BN


def branch_rollout(
    branch: VitBranch, *, title: str = "Attention rollout, transformer", reader: Reader = "class"
) -> AttentionRollout:
    """The rollout of a transformer branch."""
    return AttentionRollout(
        title=title,
        blocks=tuple(branch.trunk.blocks),
        prefix_tokens=branch.trunk.num_prefix_tokens,
        grid=branch.grid,
        reader=reader,
    )


def _only_call(maps: AttentionMaps, block: nn.Module) -> Tensor:
    if len(maps[block]) != 1:
        raise ValueError(
            f"a {type(block).__name__} ran {len(maps[block])} attentions on an image; a rollout "
            "follows blocks with one"
        )
    return maps[block][0]
