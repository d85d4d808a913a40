"""The branches of FusionReID written out slowly over a state dict: ResNet, ViT and T2T-ViT.

Shapes: B batch, C channels of a branch, D token dim, F dim of unfolded tokens, h w map rows and
columns, N tokens, K cameras, V views.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import batch_norm, conv2d, gelu, layer_norm, max_pool2d, pad, relu

Weights = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Vit:
    """What a state dict does not tell of a transformer."""

    blocks: int
    heads: int
    eps: float = 1e-6
    scale: float | None = None
    """Factor on the attention scores; None: 1 / sqrt(head dim)."""
    patches: Callable[[Weights, Tensor], Tensor]
    """[B, C, h, w] patch tokens of images."""


def part(w: Weights, prefix: str) -> Weights:
    return {k.removeprefix(f"{prefix}."): v for k, v in w.items() if k.startswith(f"{prefix}.")}


def slow_batch_norm(w: Weights, x: Tensor) -> Tensor:
    return batch_norm(x, w["running_mean"], w["running_var"], w["weight"], w["bias"])


def slow_bottleneck(w: Weights, x: Tensor, stride: int) -> Tensor:
    y = relu(slow_batch_norm(part(w, "bn1"), conv2d(x, w["conv1.weight"])))
    y = conv2d(y, w["conv2.weight"], stride=stride, padding=1)
    y = relu(slow_batch_norm(part(w, "bn2"), y))
    y = slow_batch_norm(part(w, "bn3"), conv2d(y, w["conv3.weight"]))
    if "downsample.0.weight" in w:
        x = conv2d(x, w["downsample.0.weight"], stride=stride)
        x = slow_batch_norm(part(w, "downsample.1"), x)
    return relu(x + y)


def slow_resnet(w: Weights, images: Tensor, stem: str) -> Tensor:
    """The 7x7 stem, four stages of bottlenecks, the last one with stride 1."""
    x = conv2d(images, w["conv1.weight"], stride=2, padding=3)
    x = slow_batch_norm(part(w, "bn1"), x)
    x = max_pool2d(x, 2, 2) if stem == "reid" else max_pool2d(relu(x), 3, 2, 1)
    for stage, stride in enumerate((1, 2, 2, 1), start=1):
        block = 0
        while f"layer{stage}.{block}.conv1.weight" in w:
            x = slow_bottleneck(part(w, f"layer{stage}.{block}"), x, stride if block == 0 else 1)
            block += 1
    return x


def norm(w: Weights, x: Tensor, eps: float) -> Tensor:
    return layer_norm(x, x.shape[-1:], w["weight"], w["bias"], eps)


def linear(w: Weights, x: Tensor) -> Tensor:
    return x @ w["weight"].T + w.get("bias", torch.zeros((), dtype=x.dtype))


def slow_attention(
    query: Tensor, key: Tensor, value: Tensor, heads: int, scale: float | None = None
) -> Tensor:
    """[B, Q, D], [B, N, D], [B, N, D] -> [B, Q, D], one head after the other."""
    width = query.shape[-1] // heads
    outputs = []
    for head in range(heads):
        part_of_dim = slice(head * width, (head + 1) * width)
        scores = query[..., part_of_dim] @ key[..., part_of_dim].transpose(1, 2)
        weights = (scores * (scale or width**-0.5)).softmax(dim=-1)
        outputs.append(weights @ value[..., part_of_dim])
    return torch.cat(outputs, dim=-1)


def slow_block(w: Weights, x: Tensor, heads: int, eps: float, scale: float | None = None) -> Tensor:
    """Pre-norm transformer block."""
    query, key, value = linear(part(w, "attn.qkv"), norm(part(w, "norm1"), x, eps)).chunk(3, dim=-1)
    x = x + linear(part(w, "attn.proj"), slow_attention(query, key, value, heads, scale))
    return x + slow_mlp(part(w, "mlp"), norm(part(w, "norm2"), x, eps))


def slow_mlp(w: Weights, x: Tensor) -> Tensor:
    return linear(part(w, "fc2"), gelu(linear(part(w, "fc1"), x)))


def conv_patches(stride: int) -> Callable[[Weights, Tensor], Tensor]:
    """Patches of one convolution."""

    def patches(trunk: Weights, images: Tensor) -> Tensor:
        proj = part(trunk, "patch_embed.proj")
        return conv2d(images, proj["weight"], proj["bias"], stride)

    return patches


def slow_soft_split(map_BChw: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """[B, C, h, w] -> [B, rows, columns, C * kernel^2], window by window."""
    padded = pad(map_BChw, (padding,) * 4)
    rows = range(0, padded.shape[2] - kernel + 1, stride)
    columns = range(0, padded.shape[3] - kernel + 1, stride)
    windows = [
        torch.stack([padded[:, :, y : y + kernel, x : x + kernel].flatten(1) for x in columns], 1)
        for y in rows
    ]
    return torch.stack(windows, 1)


def soft_split_patches(prefix: str) -> Callable[[Weights, Tensor], Tensor]:
    """Patches of T2T-ViT_t, whose tensors stand under `prefix`."""

    def token_transformer(w: Weights, windows_BhwF: Tensor) -> Tensor:
        batch, rows, columns, width = windows_BhwF.shape
        normal = norm(part(w, "norm1"), windows_BhwF.reshape(batch, rows * columns, width), 1e-5)
        query, key, value = linear(part(w, "attn.qkv"), normal).chunk(3, dim=-1)
        attended = slow_attention(query, key, value, heads=1, scale=width**-0.5)
        x = value + linear(part(w, "attn.proj"), attended)
        x = x + slow_mlp(part(w, "mlp"), norm(part(w, "norm2"), x, 1e-5))
        return x.reshape(batch, rows, columns, -1).permute(0, 3, 1, 2)

    def patches(trunk: Weights, images: Tensor) -> Tensor:
        w = part(trunk, prefix)
        x = token_transformer(part(w, "attention1"), slow_soft_split(images, 7, 4, 2))
        x = token_transformer(part(w, "attention2"), slow_soft_split(x, 3, 2, 1))
        return linear(part(w, "project"), slow_soft_split(x, 3, 2, 1)).permute(0, 3, 1, 2)

    return patches


VIT_TINY = Vit(blocks=12, heads=3, patches=conv_patches(12))


def slow_side_row(table_KVC: Tensor, camera: int, view: int) -> Tensor:
    """The rows of the table that a camera and a view may stand for (-1: any), averaged."""
    cameras = range(len(table_KVC)) if camera == -1 else [camera]
    views = range(table_KVC.shape[1]) if view == -1 else [view]
    rows = [table_KVC[k, v] for k in cameras for v in views]
    return sum(rows, start=torch.zeros_like(rows[0])) / len(rows)


def slow_vit(trunk: Weights, images: Tensor, offsets_BC: Tensor, vit: Vit) -> tuple[Tensor, Tensor]:
    """Class token [B, C] and patch map [B, C, h, w]; `offsets_BC` joins every token."""
    patches = vit.patches(trunk, images)
    batch, dim, rows, columns = patches.shape
    tokens = torch.zeros(batch, 1 + rows * columns, dim, dtype=images.dtype)
    for b in range(batch):
        tokens[b, 0] = trunk["cls_token"][0, 0]
        for row in range(rows):
            for column in range(columns):
                tokens[b, 1 + row * columns + column] = patches[b, :, row, column]
        tokens[b] += trunk["pos_embed"][0] + offsets_BC[b]
    for block in range(vit.blocks):
        tokens = slow_block(part(trunk, f"blocks.{block}"), tokens, vit.heads, vit.eps, vit.scale)
    tokens = norm(part(trunk, "norm"), tokens, vit.eps)
    patch_map = tokens[:, 1:].reshape(batch, rows, columns, dim).permute(0, 3, 1, 2)
    return tokens[:, 0], patch_map
