"""A timm convolutional network as one branch of a model: image in, last feature map out.

The ResNets default to the two departures that person re-identification inherited from the
TransReID code family: no ReLU behind the stem's batch norm, and an unpadded 2x2 max pooling; both
keep the names and shapes of the published weights. Without weights the ResNets start from
torchvision's initial values, every batch norm's scale at one. Every network may keep the resolution
of its last stage ("last stride 1", Luo et al., arXiv 1903.07071).

Shapes: B batch, H W image size, C channels, h w rows and columns of the feature map.
"""

from typing import Any, Literal

import timm
import torch
from timm.layers import AvgPool2dSame
from timm.models.resnet import ResNet
from torch import Tensor, nn

from reid_models.timm_names import check_timm_name
from reid_models.weights import load_strict, read_state_dict, timm_state_dict

Stem = Literal["reid", "torchvision"]


class CnnBranch(nn.Module):
    """The trunk of any timm CNN whose `forward_features` gives a [B, C, h, w] map.

    Attributes:
        dim: C, asked from the network.
        grid: (h, w) at the branch's image size, asked from the network.

    Raises:
        ValueError: an unknown name, a network that gives no such map or cannot keep the resolution
            of its last stage, or an image below 32 pixels.
    """

    def __init__(
        self, name: str, image_size: tuple[int, int], *, stem: Stem = "reid", last_stride: int = 1
    ) -> None:
        super().__init__()
        check_timm_name(name, option="cnn")
        if min(image_size) < 32:
            raise ValueError(
                f"a CNN branch needs an image_size of at least 32x32, got {image_size}"
            )
        self.name = name
        self.trunk = _build_trunk(name, last_stride)
        if isinstance(self.trunk, ResNet):
            _start_norms_at_one(self.trunk)
            if stem == "reid":
                _use_reid_stem(self.trunk, name)
        self.dim, self.grid, self._unused = _probe(self.trunk, name, image_size)
        for child in self._unused:
            setattr(self.trunk, child, nn.Identity())

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, C, h, w]."""
        return self.trunk.forward_features(images_BCHW)

    def load(self, weights: str) -> None:
        """Fill the trunk from "timm" or from a file with timm's names; the classifier is skipped.

        Raises:
            ValueError: the weights cannot be had or do not fit, see `load_strict`.
        """
        state = timm_state_dict(self.name) if weights == "timm" else read_state_dict(weights)
        skip_prefixes = [f"{child}." for child in self._unused]
        load_strict(self.trunk, state, source=weights, skip_prefixes=skip_prefixes)


def _build_trunk(name: str, last_stride: int) -> Any:
    if last_stride not in (1, 2):
        raise ValueError(f"last_stride must be 1 or 2, got {last_stride}")
    if last_stride == 2:
        return timm.create_model(name, num_classes=0, global_pool="")
    try:
        trunk = timm.create_model(name, num_classes=0, global_pool="", output_stride=16)
    except (TypeError, AssertionError) as error:
        raise ValueError(
            f"cnn={name!r} cannot keep the resolution of its last stage; use last_stride=2"
        ) from error
    _undo_dilation(trunk)
    return trunk


def _undo_dilation(trunk: nn.Module) -> None:
    """Turn timm's stride-for-dilation trade into the plain last stride 1 of re-identification."""
    for name, module in list(trunk.named_modules()):
        if isinstance(module, AvgPool2dSame) and module.stride == (1, 1):
            # Shortcuts that would pool before they halve the resolution: here they do not halve it.
            trunk.set_submodule(name, nn.Identity())
        if isinstance(module, nn.Conv2d) and max(module.dilation) > 1:
            assert not isinstance(module.padding, str)
            module.padding = tuple(
                padding // dilation
                for padding, dilation in zip(module.padding, module.dilation, strict=True)
            )
            module.dilation = (1, 1)


def _start_norms_at_one(trunk: ResNet) -> None:
    """As torchvision's ResNets start; timm starts the last norm of every block at zero."""
    for module in trunk.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)


def _use_reid_stem(trunk: ResNet, name: str) -> None:
    if not isinstance(trunk.maxpool, nn.MaxPool2d):
        raise ValueError(
            f"cnn={name!r} has no plain max pooling in its stem; use stem='torchvision'"
        )
    trunk.act1 = nn.Identity()
    trunk.maxpool = nn.MaxPool2d(kernel_size=2, stride=2)


def _probe(
    trunk: Any, name: str, image_size: tuple[int, int]
) -> tuple[int, tuple[int, int], list[str]]:
    """Run one empty image through: channels, grid, and children that `forward_features` leaves out.

    What it leaves out (classifier, pooling, some networks' last convolution) would be parameters
    without a gradient.
    """
    called: set[nn.Module] = set()
    hooks = [
        module.register_forward_hook(lambda module, *_: called.add(module))
        for module in trunk.modules()
    ]
    image = torch.zeros(1, 3, *image_size, device=next(trunk.parameters()).device)
    trunk.eval()
    try:
        with torch.no_grad():
            features = trunk.forward_features(image)
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"cnn={name!r} cannot take images of {image_size}: {error}") from error
    trunk.train()
    for hook in hooks:
        hook.remove()
    if not isinstance(features, Tensor) or features.ndim != 4:
        raise ValueError(f"cnn={name!r} gives no [B, C, h, w] feature map")
    _, channels, rows, columns = features.shape
    if channels != trunk.num_features:
        raise ValueError(
            f"cnn={name!r} gives {list(features.shape)} where {trunk.num_features} channels first "
            "are expected; it is no convolutional network with channels first"
        )
    unused = [
        child for child, module in trunk.named_children() if called.isdisjoint(module.modules())
    ]
    return channels, (rows, columns), unused
