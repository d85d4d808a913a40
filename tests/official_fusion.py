"""Checkpoints with the names and shapes of FusionReID's official code, filled at random.

Shapes: C channels of a branch, D fusion dim.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tests.slow_fusion import Layout

Shapes = dict[str, tuple[int, ...]]

OFFICIAL = Layout(
    trunk={"cnn": "resnet.base", "transformer": "transformer.base"},
    gem_global="resnet.gap",
    side_table="transformer.base.sie_embed",
    lru={"cnn": "res_LRU", "transformer": "former_LRU"},
    lru_parts=("dwconv", "bn1", "act1", "ptconv", "bn2", "act2"),
    gem={"cnn": "gap_r", "transformer": "gap_f"},
    htm="HTM.blocks.{}",
    seu={
        ("shared", "cnn"): "SEU",
        ("shared", "transformer"): "SEU",
        ("separate", "cnn"): "SEU1",
        ("separate", "transformer"): "SEU2",
    },
    seu_block="blocks.0",
    mfu={
        ("shared", "cnn"): "MFU",
        ("shared", "transformer"): "MFU",
        ("separate", "cnn"): "MUF_RES",
        ("separate", "transformer"): "MFU_FORMER",
    },
    mfu_parts={
        "norm_query": "blocks.0.norm1",
        "norm_key": "blocks.0.attn.norm",
        "query": "blocks.0.attn.q",
        "key": "blocks.0.attn.k",
        "value": "blocks.0.attn.v",
        "proj": "blocks.0.attn.proj",
        "norm_mlp": "blocks.0.norm2",
        "mlp": "blocks.0.mlp",
    },
)


@dataclass(frozen=True, kw_only=True)
class OfficialModel:
    """The settings of an official model, by default the published one."""

    resnet_blocks: tuple[int, ...] = (3, 4, 6, 3)
    dim: int = 768
    depth: int = 12
    mlp_ratio: int = 4
    qkv_bias: bool = True
    patches: int = 210
    t2t: bool = False
    side_rows: int = 6
    fusion_dim: int = 768
    htm_depth: int = 2
    seus: tuple[str, ...] = ("SEU",)
    mfus: tuple[str, ...] = ("MUF_RES", "MFU_FORMER")
    classes: int = 751

    def shapes(self) -> Shapes:
        """Name -> shape of every entry of the state dict."""
        out: Shapes = {"gap_r.p": (1,), "gap_f.p": (1,)}
        out |= {f"resnet.{name}": shape for name, shape in self.cnn_branch().items()}
        out |= {f"transformer.{name}": shape for name, shape in self.transformer_branch().items()}
        for name, channels in (("res_LRU", 2048), ("former_LRU", self.dim)):
            out |= _lru(name, channels, self.fusion_dim)
        for layer in range(self.htm_depth):
            prefix = f"HTM.blocks.{layer}"
            for unit in self.seus:
                out |= _block(f"{prefix}.{unit}.blocks.0", self.fusion_dim, 4, qkv_bias=False)
                out |= _linear(f"{prefix}.{unit}.norm", self.fusion_dim)
            for unit in self.mfus:
                out |= _fusion_block(f"{prefix}.{unit}.blocks.0", self.fusion_dim)
        for number in (1, 2, 3, 4):
            out |= _head(f"_{number}", self.fusion_dim, self.classes)
        return out

    def cnn_branch(self) -> Shapes:
        """What a model of the CNN alone is saved as."""
        base = {f"base.{name}": shape for name, shape in _resnet(self.resnet_blocks).items()}
        return base | {"gap.p": (1,)} | _head("", 2048, self.classes)

    def transformer_branch(self) -> Shapes:
        """What a model of the transformer alone is saved as, with its unused classifier."""
        dim = self.dim
        base: Shapes = {
            "cls_token": (1, 1, dim),
            "pos_embed": (1, 1 + self.patches, dim),
            "sie_embed": (self.side_rows, 1, dim),
            **_linear("norm", dim),
        }
        for number in range(self.depth):
            base |= _block(f"blocks.{number}", dim, self.mlp_ratio, qkv_bias=self.qkv_bias)
        if self.t2t:
            base |= _linear("head", self.classes, dim)
            base |= _linear("tokens_to_token.project", dim, 576)
            for number, width in ((1, 147), (2, 576)):
                unit = f"tokens_to_token.attention{number}"
                base |= _block(unit, 64, 1, qkv_bias=False)
                base |= _linear(f"{unit}.norm1", width)
                base[f"{unit}.attn.qkv.weight"] = (192, width)
        else:
            base |= _linear("fc", 1000, dim) | _linear("patch_embed.proj", dim, 3, 16, 16)
        base = {f"base.{name}": shape for name, shape in base.items()}
        return base | _head("", dim, self.classes)


def random_state(shapes: Shapes) -> dict[str, Tensor]:
    """Tensors that keep every activation of the network in a sane range."""
    generator = torch.Generator().manual_seed(4)
    state: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(100)
        elif name.endswith("running_var"):
            state[name] = 1.0 + noise.abs()
        elif name.endswith(".p"):
            state[name] = 3.0 + 0.2 * noise
        elif len(shape) > 1:
            fan_in = max(noise[0].numel(), 2)
            state[name] = noise / fan_in**0.5
        else:
            state[name] = 0.1 * noise + (0.5 if name.endswith("weight") else 0.0)
    return state


def is_parameter(name: str) -> bool:
    return not name.endswith(("running_mean", "running_var", "num_batches_tracked"))


def _linear(name: str, *shape: int) -> Shapes:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def _batch_norm(name: str, dim: int) -> Shapes:
    statistics: Shapes = {f"{name}.running_mean": (dim,), f"{name}.running_var": (dim,)}
    return _linear(name, dim) | statistics | {f"{name}.num_batches_tracked": ()}


def _head(suffix: str, dim: int, classes: int) -> Shapes:
    return _batch_norm(f"bottleneck{suffix}", dim) | {f"classifier{suffix}.weight": (classes, dim)}


def _resnet(blocks: tuple[int, ...]) -> Shapes:
    out = {"conv1.weight": (64, 3, 7, 7)} | _batch_norm("bn1", 64)
    channels = 64
    for stage, count in enumerate(blocks, start=1):
        width = 32 * 2**stage
        for number in range(count):
            block = f"layer{stage}.{number}"
            out[f"{block}.conv1.weight"] = (width, channels, 1, 1)
            out[f"{block}.conv2.weight"] = (width, width, 3, 3)
            out[f"{block}.conv3.weight"] = (4 * width, width, 1, 1)
            for norm, dim in (("bn1", width), ("bn2", width), ("bn3", 4 * width)):
                out |= _batch_norm(f"{block}.{norm}", dim)
            if number == 0:
                out[f"{block}.downsample.0.weight"] = (4 * width, channels, 1, 1)
                out |= _batch_norm(f"{block}.downsample.1", 4 * width)
            channels = 4 * width
    return out


def _block(name: str, dim: int, mlp_ratio: int, *, qkv_bias: bool) -> Shapes:
    qkv = _linear(f"{name}.attn.qkv", 3 * dim, dim)
    if not qkv_bias:
        del qkv[f"{name}.attn.qkv.bias"]
    return (
        _linear(f"{name}.norm1", dim)
        | qkv
        | _linear(f"{name}.attn.proj", dim, dim)
        | _linear(f"{name}.norm2", dim)
        | _linear(f"{name}.mlp.fc1", mlp_ratio * dim, dim)
        | _linear(f"{name}.mlp.fc2", dim, mlp_ratio * dim)
    )


def _fusion_block(name: str, dim: int) -> Shapes:
    out = _block(name, dim, 4, qkv_bias=False) | _linear(f"{name}.attn.norm", dim)
    del out[f"{name}.attn.qkv.weight"]
    return out | {f"{name}.attn.{letter}.weight": (dim, dim) for letter in "qkv"}


def _lru(name: str, channels: int, dim: int) -> Shapes:
    return (
        _linear(f"{name}.dwconv", channels, 1, 1, 1)
        | _batch_norm(f"{name}.bn1", channels)
        | {f"{name}.act1.weight": (1,), f"{name}.act2.weight": (1,)}
        | _linear(f"{name}.ptconv", dim, channels, 1, 1)
        | _batch_norm(f"{name}.bn2", dim)
    )
