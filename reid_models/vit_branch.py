"""A vision transformer as one branch of a model: image in, class token and patch map out.

Patches may overlap (stride shorter than the patch) and the image need not be square; camera and
view side information joins the position embedding. Sources: Dosovitskiy et al., arXiv 2010.11929;
overlapping patches and side information: He et al., "TransReID", arXiv 2102.04378.

Shapes: B batch, H W image size, N tokens with the prefix (class, register) tokens, C token dim,
h w rows and columns of the patch grid.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from reid_models.key_maps import VIT_KEY_MAP, renamed
from reid_models.side_information import SideInformation
from reid_models.transformer_networks import build_transformer
from reid_models.weights import (
    StateDict,
    load_strict,
    read_state_dict,
    resize_position_embedding,
    timm_state_dict,
)

_CLASSIFIER_PREFIXES = ("head.", "head_dist.", "fc.", "pre_logits.")


@dataclass(frozen=True)
class VitFeatures:
    """What the branch gives for a batch, after the transformer's final layer norm."""

    summary: Tensor
    """[B, C]: the class token."""

    patches: Tensor
    """[B, C, h, w]: the patch tokens on their grid, row-major."""


class VitBranch(nn.Module):
    """Any network of `transformer_networks`: one with a class token and a position table.

    Attributes:
        dim: C, asked from the network.
        grid: (h, w) of the patch tokens, asked from the network.

    Raises:
        ValueError: an unknown name, another kind of network, or a stride or image size that does
            not go with the patch size.
    """

    def __init__(
        self,
        name: str,
        image_size: tuple[int, int],
        *,
        patch_stride: int,
        drop_path: float,
        camera_count: int,
        side_information: float,
        view_count: int = 0,
    ) -> None:
        super().__init__()
        self.name = name
        self.trunk = build_transformer(
            name, image_size, patch_stride=patch_stride, drop_path=drop_path
        )
        self.dim: int = self.trunk.embed_dim
        self.grid: tuple[int, int] = self.trunk.patch_embed.grid_size
        self.side_information = (
            SideInformation(
                camera_count, self.dim, coefficient=side_information, view_count=view_count
            )
            if max(camera_count, view_count) > 1 and side_information != 0
            else None
        )

    def forward(
        self, images_BCHW: Tensor, cameras_B: Tensor | None, views_B: Tensor | None = None
    ) -> VitFeatures:
        """[B, 3, H, W] and [B] indices (-1 or None: unknown) -> class token and map."""
        trunk = self.trunk
        tokens_BNC = trunk._pos_embed(trunk.patch_embed(images_BCHW))
        if self.side_information is not None:
            tokens_BNC = tokens_BNC + self.side_information(cameras_B, views_B)
        tokens_BNC = trunk.blocks(trunk.norm_pre(tokens_BNC))
        tokens_BNC = trunk.norm(tokens_BNC)
        patches_BNC = tokens_BNC[:, trunk.num_prefix_tokens :]
        return VitFeatures(
            summary=tokens_BNC[:, 0],
            patches=patches_BNC.transpose(1, 2).unflatten(2, self.grid),
        )

    def load(self, weights: str) -> None:
        """Fill the trunk from "timm", or from a file with the names of timm, torchvision or T2T.

        The classifier is skipped, a distillation token is dropped where the network has none, and
        the position embedding is resized bilinearly to this branch's grid.

        Raises:
            ValueError: the weights cannot be had or do not fit, see `load_strict`.
        """
        state = timm_state_dict(self.name) if weights == "timm" else read_state_dict(weights)
        load_strict(
            self.trunk,
            self._fitted(renamed(state, VIT_KEY_MAP)),
            source=weights,
            skip_prefixes=_CLASSIFIER_PREFIXES,
        )

    def _fitted(self, state: StateDict) -> StateDict:
        position_1NC = state.get("pos_embed")
        if position_1NC is None or position_1NC.ndim != 3:
            return state  # load_strict names what is missing
        if "dist_token" in state and not hasattr(self.trunk, "dist_token"):
            del state["dist_token"]
            position_1NC = torch.cat([position_1NC[:, :1], position_1NC[:, 2:]], dim=1)
        prefix_tokens = 0 if self.trunk.no_embed_class else self.trunk.num_prefix_tokens
        state["pos_embed"] = resize_position_embedding(
            position_1NC, grid=self.grid, prefix_tokens=prefix_tokens
        )
        return state
