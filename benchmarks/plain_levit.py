"""LEViT as plain eager PyTorch; see `benchmarks.plain_models`.

Shapes: B batch, C channels, H W rows and columns of a map, M heads, d channels of a head, w window
side, T = w * w positions of a window.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.plain_units import plain_copy
from reid_models import ReidOutput
from reid_models.levit import METRIC_HEADS, LEViT


class PlainLEViT(nn.Module):
    """LEViT for re-identification; query, key, value and local path by four convolutions."""

    def __init__(self, model: LEViT) -> None:
        super().__init__()
        backbone = model.backbone
        self.stem = plain_copy(backbone.stem)
        self.stages = nn.Sequential(
            *(
                PlainLEViTBlock(block)
                for stage in (backbone.stage1, backbone.stage2)
                for block in stage
            )
        )
        self.branches = nn.ModuleList(
            nn.Sequential(*(PlainLEViTBlock(block) for block in stage))
            for stage in (backbone.stage3, model.branch_2)
        )
        self.heads = plain_copy(model.heads)

    def forward(self, images_BCHW: Tensor, cameras_B: Tensor | None = None) -> ReidOutput:
        map_BChw = self.stages(self.stem(images_BCHW))
        first_BChw, second_BChw = (branch(map_BChw) for branch in self.branches)
        upper_BChw, lower_BChw = second_BChw.chunk(2, dim=2)
        pooled = {
            "average_1": functional.adaptive_avg_pool2d(first_BChw, 1),
            "average_2": functional.adaptive_avg_pool2d(second_BChw, 1),
            "max_1": functional.adaptive_max_pool2d(first_BChw, 1),
            "max_upper_2": functional.adaptive_max_pool2d(upper_BChw, 1),
            "max_lower_2": functional.adaptive_max_pool2d(lower_BChw, 1),
        }
        necks = {name: self.heads[name].neck(x.flatten(1)) for name, x in pooled.items()}
        embedding = torch.cat(list(necks.values()), dim=1)
        if not self.training:
            return ReidOutput(embedding)
        logits = {name: self.heads[name].classifier(neck) for name, neck in necks.items()}
        metric_features = {name: necks[name] for name in METRIC_HEADS}
        return ReidOutput(embedding, logits=logits, metric_features=metric_features)


class PlainLEViTBlock(nn.Module):
    """Attention, MLP and skip path of one block."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.attention = PlainWindowAttention(block.attention) if block.attention else None
        self.mlp = nn.Sequential(
            *(plain_copy(part) for part in (block.mlp.expand, block.mlp.local, block.mlp.project))
        )
        self.skip, self.drop_path = plain_copy(block.skip), plain_copy(block.drop_path)

    def forward(self, map_BCHW: Tensor) -> Tensor:
        if self.attention is not None:
            map_BCHW = map_BCHW + self.drop_path(self.attention(map_BCHW))
        return self.skip(map_BCHW) + self.drop_path(self.mlp(map_BCHW))


class PlainWindowAttention(nn.Module):
    """Cosine attention within windows."""

    def __init__(self, unit: Any) -> None:
        super().__init__()
        self.heads, self.window = unit.heads, unit.window
        self.query, self.key, self.value = (_one_of_three(unit.qkv, i) for i in range(3))
        self.local_value, self.proj = plain_copy(unit.local_value), plain_copy(unit.proj)
        self.logit_scale = copy.deepcopy(unit.logit_scale)

    def forward(self, map_BCHW: Tensor) -> Tensor:
        value_BCHW = self.value(map_BCHW)
        query, key, value = (
            self._windows(x) for x in (self.query(map_BCHW), self.key(map_BCHW), value_BCHW)
        )
        cosines = functional.normalize(query, dim=-1) @ functional.normalize(key, dim=-1).mT
        weights = (cosines * self.logit_scale.clamp(max=4.6052).exp()).softmax(dim=-1)
        rows, columns = (size // self.window for size in map_BCHW.shape[2:])
        tiles = (weights @ value).mT.unflatten(3, (self.window, self.window))
        tiles = tiles.unflatten(0, (-1, rows, columns))  # B, rows, columns, M, d, w, w
        attended_BCHW = tiles.permute(0, 3, 4, 1, 5, 2, 6).reshape(map_BCHW.shape)
        return self.proj(functional.relu(attended_BCHW + self.local_value(value_BCHW)))

    def _windows(self, map_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] -> [windows, M, T, d]."""
        rows, columns = (size // self.window for size in map_BCHW.shape[2:])
        tiles = map_BCHW.unflatten(3, (columns, self.window)).unflatten(2, (rows, self.window))
        tiles = tiles.unflatten(1, (self.heads, -1)).permute(0, 3, 5, 1, 4, 6, 2)
        return tiles.flatten(4, 5).flatten(0, 2)


def _one_of_three(fused: Any, which: int) -> nn.Sequential:
    """Query, key or value out of LEViT's one convolution and norm for the three."""
    channels = fused.conv.in_channels
    conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels // 4, bias=False)
    norm = nn.BatchNorm2d(channels, eps=fused.bn.eps, momentum=fused.bn.momentum)
    parts = nn.Sequential(conv, norm).to(fused.conv.weight)
    with torch.no_grad():
        conv.weight.copy_(_third(fused.conv.weight, which))
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(norm, name).copy_(_third(getattr(fused.bn, name), which))
    return parts


def _third(fused: Tensor, which: int) -> Tensor:
    return fused.unflatten(0, (-1, 3, 4))[:, which].flatten(0, 1)
