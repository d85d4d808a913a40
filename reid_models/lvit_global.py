"""The global branch of LViT-Net: a vision transformer, or by another reading a Swin transformer.

Sources: Dosovitskiy et al., arXiv 2010.11929; Liu et al., "Swin Transformer", arXiv 2103.14030.

Shapes: B batch, H W image size, G tokens with the prefix (class, register) tokens, D token dim,
h w rows and columns of the last grid.
"""

import timm
from timm.layers import resize_rel_pos_bias_table_simple
from timm.models import is_model_in_modules
from torch import Tensor, nn

from reid_models.timm_names import check_timm_name
from reid_models.transformer_networks import check_transformer_name
from reid_models.vit_branch import VitBranch, VitFeatures
from reid_models.weights import StateDict, load_strict, read_state_dict, timm_state_dict

_POSITION_TABLE = ".relative_position_bias_table"


def is_hierarchical(name: str) -> bool:
    """Whether the name is that of a Swin transformer of timm's.

    Raises:
        ValueError: no such network at all.
    """
    if is_model_in_modules(name, "swin_transformer"):
        check_timm_name(name, option="transformer")
        return True
    check_transformer_name(name)
    return False


class SteppedVit(VitBranch):
    """A `VitBranch` that also runs in parts, for what happens between its blocks."""

    def embed(self, images_BCHW: Tensor, cameras_B: Tensor | None) -> Tensor:
        """[B, 3, H, W] -> what the first block takes, [B, G, D]."""
        tokens_BGD = self.trunk._pos_embed(self.trunk.patch_embed(images_BCHW))
        if self.side_information is not None:
            tokens_BGD = tokens_BGD + self.side_information(cameras_B)
        return self.trunk.norm_pre(tokens_BGD)

    def run_part(self, tokens_BGD: Tensor, part: int, parts: int) -> Tensor:
        """The blocks of one of equally long parts, counted from 0, [B, G, D] -> the same."""
        depth = len(self.trunk.blocks)
        return self.trunk.blocks[depth * part // parts : depth * (part + 1) // parts](tokens_BGD)


class SwinBranch(nn.Module):
    """A Swin transformer of timm's: image in, mean token and last map out.

    Attributes:
        dim: D, asked from the network.
    """

    def __init__(self, name: str, image_size: tuple[int, int], *, drop_path: float) -> None:
        super().__init__()
        self.name = name
        self.trunk = timm.create_model(
            name, num_classes=0, global_pool="", img_size=image_size, drop_path_rate=drop_path
        )
        self.dim: int = self.trunk.num_features

    def forward(self, images_BCHW: Tensor, cameras_B: Tensor | None) -> VitFeatures:
        """[B, 3, H, W] -> the mean of the last tokens, which stands for a class token, and their
        map [B, D, h, w]. The network reads no camera."""
        map_BhwD = self.trunk.forward_features(images_BCHW)
        return VitFeatures(
            summary=map_BhwD.mean(dim=(1, 2)),
            patches=map_BhwD.permute(0, 3, 1, 2),
        )

    def load(self, weights: str) -> None:
        """Fill the trunk from "timm" or from a file with timm's names; the classifier is skipped.

        Tables of relative positions are resized where a window is smaller than the weights' own.

        Raises:
            ValueError: the weights cannot be had or do not fit, see `load_strict`.
        """
        state = timm_state_dict(self.name) if weights == "timm" else read_state_dict(weights)
        load_strict(self.trunk, self._fitted(state), source=weights, skip_prefixes=("head.",))

    def _fitted(self, state: StateDict) -> StateDict:
        for key, own in self.trunk.state_dict().items():
            given = state.get(key)
            if given is None or not key.endswith(_POSITION_TABLE) or given.ndim != 2:
                continue  # load_strict names what does not fit
            if given.shape[0] != own.shape[0] and given.shape[1] == own.shape[1]:
                attention = self.trunk.get_submodule(key.removesuffix(_POSITION_TABLE))
                state[key] = resize_rel_pos_bias_table_simple(
                    given, attention.window_size, tuple(own.shape)
                )
        return state
