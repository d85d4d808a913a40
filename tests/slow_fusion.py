"""FusionReID written out slowly over a state dict: the reference of the tests.

The same arithmetic reads this package's tensor names (`OURS`) and those of the official code
(`OFFICIAL` in the importer's tests); what differs is said once, in a `Layout`.

Shapes: B batch, D fusion dim, h w map rows and columns.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import conv2d, prelu

from tests.slow_branches import (
    VIT_TINY,
    Vit,
    Weights,
    linear,
    norm,
    part,
    slow_attention,
    slow_batch_norm,
    slow_block,
    slow_mlp,
    slow_resnet,
    slow_side_row,
    slow_vit,
)

BRANCHES = ("cnn", "transformer")
HEADS = 3
"""Attention heads of the units in every test."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where a state dict keeps what."""

    trunk: dict[str, str]
    gem_global: str
    side_table: str
    lru: dict[str, str]
    lru_parts: tuple[str, ...]
    gem: dict[str, str]
    htm: str
    seu: dict[tuple[str, str], str]
    """(sharing, branch) -> prefix inside the HTM."""
    seu_block: str
    mfu: dict[tuple[str, str], str]
    mfu_parts: dict[str, str]


OURS = Layout(
    trunk={"cnn": "cnn.trunk", "transformer": "transformer.trunk"},
    gem_global="gem_global",
    side_table="transformer.side_information.table_KC",
    lru={"cnn": "lru.cnn", "transformer": "lru.transformer"},
    lru_parts=("0", "1", "2", "3", "4", "5"),
    gem={"cnn": "gem.cnn", "transformer": "gem.transformer"},
    htm="htms.{}",
    seu={
        ("shared", "cnn"): "seu.shared",
        ("shared", "transformer"): "seu.shared",
        ("separate", "cnn"): "seu.cnn",
        ("separate", "transformer"): "seu.transformer",
    },
    seu_block="block",
    mfu={
        ("shared", "cnn"): "mfu.shared",
        ("shared", "transformer"): "mfu.shared",
        ("separate", "cnn"): "mfu.cnn",
        ("separate", "transformer"): "mfu.transformer",
    },
    mfu_parts={
        name: name
        for name in ("norm_query", "query", "norm_key", "key", "value", "proj", "norm_mlp", "mlp")
    },
)


def slow_gem(w: Weights, map_BChw: Tensor) -> Tensor:
    powered = torch.maximum(map_BChw, torch.tensor(1e-6)) ** w["p"]
    rows, columns = map_BChw.shape[2:]
    return (powered.sum(3).sum(2) / (rows * columns)) ** (1 / w["p"])


def slow_lru(w: Weights, x: Tensor, layout: Layout) -> Tensor:
    depth_wise, norm1, slope1, point_wise, norm2, slope2 = (part(w, n) for n in layout.lru_parts)
    padding = depth_wise["weight"].shape[-1] // 2
    x = conv2d(x, depth_wise["weight"], depth_wise["bias"], padding=padding, groups=x.shape[1])
    x = prelu(slow_batch_norm(norm1, x), slope1["weight"])
    x = conv2d(x, point_wise["weight"], point_wise["bias"])
    return prelu(slow_batch_norm(norm2, x), slope2["weight"])


def slow_seu(w: Weights, summary: Tensor, tokens: Tensor, layout: Layout) -> Tensor:
    sequence = torch.cat([summary[:, None], tokens], 1)
    return norm(part(w, "norm"), slow_block(part(w, layout.seu_block), sequence, HEADS, 1e-5), 1e-5)


def slow_mfu(w: Weights, summary: Tensor, others: Tensor, layout: Layout) -> Tensor:
    at = {name: part(w, place) for name, place in layout.mfu_parts.items()}
    query = linear(at["query"], norm(at["norm_query"], summary[:, None], 1e-5))
    key = linear(at["key"], norm(at["norm_key"], others, 1e-5))
    value = linear(at["value"], others)
    y = summary[:, None] + linear(at["proj"], slow_attention(query, key, value, HEADS))
    return (y + slow_mlp(at["mlp"], norm(at["norm_mlp"], y, 1e-5)))[:, 0]


def slow_htm(
    w: Weights,
    summaries: dict[str, Tensor],
    tokens: dict[str, Tensor],
    *,
    layout: Layout,
    mode: str,
    seu_sharing: str,
    mfu_sharing: str,
) -> dict[str, Tensor]:
    """One module: its steps in the order that the mode names them."""
    summaries, tokens = dict(summaries), dict(tokens)
    for step in mode.split("_"):
        if step == "encode":
            for branch in BRANCHES:
                unit = part(w, layout.seu[seu_sharing, branch])
                encoded = slow_seu(unit, summaries[branch], tokens[branch], layout)
                summaries[branch], tokens[branch] = encoded[:, 0], encoded[:, 1:]
        else:
            cnn, transformer = (part(w, layout.mfu[mfu_sharing, branch]) for branch in BRANCHES)
            summaries = {
                "cnn": slow_mfu(cnn, summaries["cnn"], tokens["transformer"], layout),
                "transformer": slow_mfu(
                    transformer, summaries["transformer"], tokens["cnn"], layout
                ),
            }
    return summaries


def slow_fusion_reid(
    w: Weights,
    images: Tensor,
    cameras: list[int],
    *,
    layout: Layout = OURS,
    vit: Vit = VIT_TINY,
    depth: int,
    stem: str = "reid",
    mode: str = "encode_fuse",
    seu_sharing: str = "shared",
    mfu_sharing: str = "separate",
    views: list[int] | None = None,
    view_count: int = 1,
) -> Tensor:
    """The six features, concatenated."""
    table_KVC = w[layout.side_table].reshape(-1, view_count, w[layout.side_table].shape[-1])
    offsets = [
        3.0 * slow_side_row(table_KVC, camera, view)
        for camera, view in zip(cameras, views or [-1] * len(cameras), strict=True)
    ]
    cnn_map = slow_resnet(part(w, layout.trunk["cnn"]), images, stem)
    transformer_global, transformer_map = slow_vit(
        part(w, layout.trunk["transformer"]), images, torch.stack(offsets), vit
    )
    refined = {
        "cnn": slow_lru(part(w, layout.lru["cnn"]), cnn_map, layout),
        "transformer": slow_lru(part(w, layout.lru["transformer"]), transformer_map, layout),
    }
    initial = {
        branch: slow_gem(part(w, layout.gem[branch]), refined[branch]) for branch in BRANCHES
    }
    tokens = {branch: refined[branch].flatten(2).transpose(1, 2) for branch in BRANCHES}
    fused = initial
    for layer in range(depth):
        fused = slow_htm(
            part(w, layout.htm.format(layer)),
            fused,
            tokens,
            layout=layout,
            mode=mode,
            seu_sharing=seu_sharing,
            mfu_sharing=mfu_sharing,
        )
    return torch.cat(
        [
            slow_gem(part(w, layout.gem_global), cnn_map),
            transformer_global,
            *initial.values(),
            *fused.values(),
        ],
        dim=1,
    )
