"""LViT-Net written out slowly over a state dict: the reference of the tests.

Shapes: B batch, C channels, D token dim, h w map rows and columns, L local tokens, G global tokens.
"""

import torch
from torch import Tensor
from torch.nn.functional import conv2d, gelu

from reid_models.lvit_net import LViTNet, LViTNetOptions
from tests.slow_branches import (
    Weights,
    linear,
    norm,
    part,
    slow_attention,
    slow_block,
    slow_mlp,
    slow_side_row,
)


def slow_group_norm(w: Weights, x: Tensor, groups: int) -> Tensor:
    rows = x.reshape(len(x), groups, -1)
    centred = rows - rows.mean(2, keepdim=True)
    normal = centred / (centred.square().mean(2, keepdim=True) + 1e-5).sqrt()
    return normal.reshape(x.shape) * w["weight"][:, None, None] + w["bias"][:, None, None]


def slow_conv(w: Weights, x: Tensor, **settings: int) -> Tensor:
    return conv2d(x, w["weight"], w.get("bias"), **settings)


def slow_local(w: Weights, images: Tensor, options: LViTNetOptions) -> list[Tensor]:
    """The maps of the four stages."""
    x, maps = images, []
    for stage in range(4):
        layers = part(w, f"stages.{stage}")
        if stage == 0:
            x = slow_conv(part(layers, "0"), x, stride=4)
            x = slow_group_norm(part(layers, "1"), x, options.norm_groups)
        else:
            x = slow_group_norm(part(layers, "0"), x, options.norm_groups)
            x = slow_conv(part(layers, "1"), x, stride=2)
        for block in range(options.local_blocks):
            depth_wise, group_norm, point_wise = (
                part(layers, f"{2 + block}.layers.{i}") for i in range(3)
            )
            y = slow_conv(depth_wise, x, padding=1, groups=x.shape[1])
            y = slow_conv(point_wise, slow_group_norm(group_norm, y, options.norm_groups))
            x = x + gelu(y)
        maps.append(x)
    return maps


def slow_pool(x: Tensor, factor: int) -> Tensor:
    batch, channels, rows, columns = x.shape
    shape = (batch, channels, rows // factor, factor, columns // factor, factor)
    return x.reshape(shape).mean(dim=(3, 5))


def slow_doubled(x: Tensor) -> Tensor:
    """Twice the rows and columns, bilinear: a new cell lies a quarter beside the middle of its old
    one, and takes a quarter of the old one's neighbour on that side, at the edge of itself."""
    for dim in (2, 3):
        cells = x.unbind(dim)
        new = []
        for i, cell in enumerate(cells):
            for neighbour in (max(i - 1, 0), min(i + 1, len(cells) - 1)):
                new.append(0.75 * cell + 0.25 * cells[neighbour])
        x = torch.stack(new, dim)
    return x


def slow_scales(w: Weights, maps: list[Tensor], options: LViTNetOptions) -> list[Tensor]:
    """The stages' maps at stride 16 with D channels."""
    aligned = [slow_pool(maps[0], 4), slow_pool(maps[1], 2), maps[2], slow_doubled(maps[3])]
    return [
        slow_group_norm(
            part(w, f"projections.{i}.1"),
            slow_conv(part(w, f"projections.{i}.0"), x),
            options.norm_groups,
        )
        for i, x in enumerate(aligned)
    ]


def slow_lmsf(w: Weights, scales: list[Tensor], options: LViTNetOptions) -> Tensor:
    batch, dim = scales[0].shape[:2]
    pooled = (scales[0] + scales[1] + scales[2] + scales[3]).mean(dim=(2, 3))
    scores = slow_mlp(part(w, "scale_attention"), pooled).reshape(batch, 4, dim)
    shares = scores.exp() / scores.exp().sum(dim=1, keepdim=True)
    mixed = sum(shares[:, i, :, None, None] * scales[i] for i in range(4))
    refined = sum(
        slow_conv(part(w, f"refinements.{i}"), mixed, padding=kernel // 2, groups=dim)
        for i, kernel in enumerate(options.lmsf_kernels)
    )
    refined = gelu(slow_group_norm(part(w, "mix.0"), refined, options.norm_groups))
    return mixed + slow_conv(part(w, "mix.2"), refined)


def slow_iteration(
    w: Weights, local_BLD: Tensor, global_BGD: Tensor, options: LViTNetOptions
) -> tuple[Tensor, Tensor]:
    """One iteration of DFCF over all tokens, both sides from what came in."""
    tokens = {"local": local_BLD, "global": global_BGD}
    at = {side: part(w, f"{side}_side") for side in tokens}
    normed = {side: norm(part(at[side], "norm"), x, 1e-5) for side, x in tokens.items()}
    new = {}
    for side, other in (("local", "global"), ("global", "local")):
        key, value = linear(part(at[other], "key_value"), normed[other]).chunk(2, dim=-1)
        query = linear(part(at[side], "query"), normed[side])
        difference = linear(
            part(at[side], "proj"), slow_attention(query, key, value, options.dfcf_heads)
        )
        a, b, c, d = at[side]["residual_scales"]
        x = a * tokens[side] + b * difference
        new[side] = c * x + d * slow_mlp(
            part(at[side], "mlp"), norm(part(at[side], "norm_mlp"), x, 1e-5)
        )
    return new["local"], new["global"]


def slow_dfcf(
    w: Weights, local_BLD: Tensor, global_BGD: Tensor, options: LViTNetOptions
) -> tuple[Tensor, Tensor]:
    """Summaries of the global and the local side."""
    class_tokens = options.dfcf_exchange == "class_tokens"
    if class_tokens:
        local_BLD = torch.cat([local_BLD.mean(1, keepdim=True), local_BLD], dim=1)
    for number in range(options.dfcf_iterations):
        new_local, new_global = slow_iteration(
            block_of(w, number, options), local_BLD, global_BGD, options
        )
        if class_tokens:
            new_local[:, 1:], new_global[:, 1:] = local_BLD[:, 1:], global_BGD[:, 1:]
        local_BLD, global_BGD = new_local, new_global
    return global_BGD[:, 0], local_BLD[:, 0] if class_tokens else local_BLD.mean(dim=1)


def block_of(w: Weights, number: int, options: LViTNetOptions) -> Weights:
    return part(w, f"blocks.{0 if options.share_iterations else number}")


def slow_embed(w: Weights, images: Tensor, cameras: list[int], options: LViTNetOptions) -> Tensor:
    """What the first block of ViT-tiny takes."""
    factor, stride = options.side_information, options.patch_stride
    patches = slow_conv(part(w, "trunk.patch_embed.proj"), images, stride=stride)
    class_token = w["trunk.cls_token"].expand(len(images), 1, -1)
    tokens = torch.cat([class_token, patches.flatten(2).transpose(1, 2)], dim=1)
    tokens = tokens + w["trunk.pos_embed"]
    if not factor:
        return tokens
    table = w["side_information.table_KC"].unsqueeze(1)
    offsets = [factor * slow_side_row(table, camera, -1) for camera in cameras]
    return tokens + torch.stack(offsets).unsqueeze(1)


def slow_blocks(w: Weights, tokens: Tensor, start: int, stop: int) -> Tensor:
    for block in range(start, stop):
        tokens = slow_block(part(w, f"trunk.blocks.{block}"), tokens, heads=3, eps=1e-6)
    return tokens


def slow_feature(model: LViTNet, images: Tensor, cameras: list[int]) -> Tensor:
    """What the head takes. A Swin trunk is run as it is."""
    options, w = model.options, model.state_dict()
    vit, dfcf, lmsf = part(w, "transformer"), part(w, "dfcf"), part(w, "lmsf")
    scales = slow_scales(lmsf, slow_local(part(w, "local"), images, options), options)
    places = dfcf.get("position_1ND", torch.zeros((), dtype=images.dtype))
    if options.transformer.startswith("swin"):
        rows = model.transformer.trunk.forward_features(images).flatten(1, 2)
        tokens = torch.cat([rows.mean(1, keepdim=True), rows], dim=1)
    else:
        tokens = slow_embed(vit, images, cameras, options)
    if options.dfcf_placement == "levels":
        for level in range(4):
            tokens = slow_blocks(vit, tokens, 3 * level, 3 * level + 3)
            local = scales[level].flatten(2).transpose(1, 2) + places
            local, tokens = slow_iteration(block_of(dfcf, level, options), local, tokens, options)
            scales[level] = local.transpose(1, 2).reshape(scales[level].shape)
        summary = norm(part(vit, "trunk.norm"), tokens, 1e-6)[:, 0]
        mean = slow_lmsf(lmsf, scales, options).mean(dim=(2, 3))
    else:
        if not options.transformer.startswith("swin"):
            tokens = norm(part(vit, "trunk.norm"), slow_blocks(vit, tokens, 0, 12), 1e-6)
        local = slow_lmsf(lmsf, scales, options).flatten(2).transpose(1, 2) + places
        summary, mean = slow_dfcf(dfcf, local, tokens, options)
    feature = torch.cat([summary, mean], dim=1)
    return feature @ w["reduction.weight"].T if options.reduction_dim else feature
