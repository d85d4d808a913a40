"""A timm vision transformer as one branch of a model: image in, class token and patch map out.

Patches may overlap (stride shorter than the patch) and the image need not be square; camera side
information joins the position embedding. Sources: Dosovitskiy et al., arXiv 2010.11929; overlapping
patches and side information: He et al., "TransReID", arXiv 2102.04378.

Shapes: B batch, H W image size, N tokens with the prefix (class, register) tokens, C token dim,
h w rows and columns of the patch grid.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import timm
import torch
from timm.layers import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from reid_models.side_information import SideInformation
from reid_models.timm_names import check_timm_name
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


class OverlappingPatchEmbed(PatchEmbed):
    """timm's patch embedding with a stride of its own; (H - patch) // stride + 1 rows."""

    def __init__(self, *args: Any, stride: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        patch, out_channels = self.patch_size[0], self.proj.out_channels
        if not 1 <= stride <= patch or min(self.img_size) < patch:
            raise ValueError(
                f"patch_stride must lie in 1..{patch} and image_size be at least {patch}x{patch}, "
                f"got patch_stride={stride} and image_size={self.img_size}"
            )
        self.proj.stride = (stride, stride)
        rows, columns = ((pixels - patch) // stride + 1 for pixels in self.img_size)
        self.grid_size = (rows, columns)
        self.num_patches = rows * columns
        nn.init.normal_(self.proj.weight, std=math.sqrt(2.0 / (patch * patch * out_channels)))


class VitBranch(nn.Module):
    """Any timm `VisionTransformer` with a class token and a learned position embedding.

    Attributes:
        dim: C, asked from the network.
        grid: (h, w) of the patch tokens.

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
    ) -> None:
        super().__init__()
        check_timm_name(name, option="transformer")
        self.name = name
        self.trunk = _build_trunk(name, image_size, patch_stride, drop_path)
        self.dim: int = self.trunk.embed_dim
        self.grid: tuple[int, int] = self.trunk.patch_embed.grid_size
        self.side_information = (
            SideInformation(camera_count, self.dim, coefficient=side_information)
            if camera_count > 1 and side_information != 0
            else None
        )

    def forward(self, images_BCHW: Tensor, cameras_B: Tensor | None) -> VitFeatures:
        """[B, 3, H, W] and [B] camera indices (-1 or None: unknown) -> class token and map."""
        trunk = self.trunk
        tokens_BNC = trunk._pos_embed(trunk.patch_embed(images_BCHW))
        if self.side_information is not None:
            tokens_BNC = tokens_BNC + self.side_information(cameras_B)
        tokens_BNC = trunk.blocks(trunk.norm_pre(tokens_BNC))
        tokens_BNC = trunk.norm(tokens_BNC)
        patches_BNC = tokens_BNC[:, trunk.num_prefix_tokens :]
        return VitFeatures(
            summary=tokens_BNC[:, 0],
            patches=patches_BNC.transpose(1, 2).unflatten(2, self.grid),
        )

    def load(self, weights: str) -> None:
        """Fill the trunk from "timm" or from a file with timm's names.

        The classifier is skipped, a distillation token is dropped where the network has none, and
        the position embedding is resized bilinearly to this branch's grid.

        Raises:
            ValueError: the weights cannot be had or do not fit, see `load_strict`.
        """
        state = timm_state_dict(self.name) if weights == "timm" else read_state_dict(weights)
        load_strict(
            self.trunk,
            self._fitted(dict(state)),
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


def _build_trunk(
    name: str, image_size: tuple[int, int], patch_stride: int, drop_path: float
) -> VisionTransformer:
    try:
        trunk = timm.create_model(
            name,
            num_classes=0,
            global_pool="token",
            fc_norm=False,
            img_size=image_size,
            drop_path_rate=drop_path,
            embed_layer=partial(OverlappingPatchEmbed, stride=patch_stride),
        )
    except (TypeError, AssertionError) as error:
        raise ValueError(f"transformer={name!r} is no plain vision transformer: {error}") from error
    if not isinstance(trunk, VisionTransformer) or not trunk.has_class_token:
        raise ValueError(f"transformer={name!r} is no timm VisionTransformer with a class token")
    if trunk.pos_embed is None:
        raise ValueError(f"transformer={name!r} has no learned position embedding")
    nn.init.trunc_normal_(trunk.cls_token, std=0.02)
    return trunk
