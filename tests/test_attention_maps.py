"""Recorded attention, rollout and Grad-CAM against slow plain loops."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

from reid_models.attention_maps import record_attention
from reid_models.explanations import (
    AttentionRollout,
    CrossAttention,
    GradCam,
    PartSimilarity,
    roll_out,
)
from tests import small_lvit
from tests.slow_branches import VIT_TINY, Weights, linear, norm, part, slow_resnet, slow_vit
from tests.slow_fusion import BRANCHES, HEADS, OURS, slow_gem, slow_lru, slow_mfu, slow_seu
from tests.small_fusion import small_model
from tests.small_models import IMAGE_SIZE, images, new_model, scrambled, settled_model


def slow_weights(query: Tensor, key: Tensor, heads: int) -> Tensor:
    """[B, Q, D], [B, K, D] -> [B, Q, K]: softmax row by row, mean over the heads."""
    width = query.shape[-1] // heads
    total = torch.zeros(query.shape[0], query.shape[1], key.shape[1], dtype=query.dtype)
    for image in range(query.shape[0]):
        for head in range(heads):
            columns = slice(head * width, (head + 1) * width)
            for row in range(query.shape[1]):
                scores = key[image, :, columns] @ query[image, row, columns] / width**0.5
                exponents = (scores - scores.max()).exp()
                total[image, row] += exponents / exponents.sum() / heads
    return total


def slow_rollout(attention: list[Tensor]) -> Tensor:
    """[N, N] a block -> [N, N], with whole matrices."""
    rollout = torch.eye(len(attention[0]), dtype=attention[0].dtype)
    for weights in attention:
        mixed = (weights + torch.eye(len(weights), dtype=weights.dtype)) / 2
        rollout = (mixed / mixed.sum(dim=1, keepdim=True)) @ rollout
    return rollout


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual.double(), expected.double(), rtol=1e-4, atol=1e-6)


def tiny_vit() -> VisionTransformer:
    torch.manual_seed(0)
    vit = VisionTransformer(
        img_size=(24, 16), patch_size=8, embed_dim=12, depth=3, num_heads=3, num_classes=0
    ).eval()
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return vit


def slow_vit_attention(vit: VisionTransformer, pictures: Tensor) -> list[Tensor]:
    tokens = vit._pos_embed(vit.patch_embed(pictures))
    found = []
    for block in vit.blocks:
        query, key, _ = block.attn.qkv(block.norm1(tokens)).chunk(3, dim=-1)
        found.append(slow_weights(query, key, 3))
        tokens = block(tokens)
    return found


def rollout_of(vit: VisionTransformer, **changes: str) -> AttentionRollout:
    blocks = tuple(vit.blocks)
    return AttentionRollout(title="", blocks=blocks, prefix_tokens=1, grid=(3, 2), **changes)


@pytest.mark.parametrize("fused", [True, False])
@torch.no_grad()
def test_weights_and_rollout_are_those_of_plain_loops(fused: bool) -> None:
    vit, pictures = tiny_vit(), torch.randn(2, 3, 24, 16)
    expected = slow_vit_attention(vit, pictures)
    for block in vit.blocks:
        block.attn.fused_attn = fused
    with record_attention(vit.blocks) as maps:
        vit(pictures)
    assert all(block.attn.fused_attn is fused for block in vit.blocks)
    for block, weights in zip(vit.blocks, expected, strict=True):
        close(maps[block][0], weights)
        close(maps[block][0].sum(dim=2), torch.ones(2, 7))
    assert expected[0].std() > 0.01, "even weights would compare equal whatever their order"
    for reader, start in (("class", slice(0, 1)), ("patches", slice(1, None))):
        heat = rollout_of(vit, reader=reader).heat(maps)
        for image in range(2):
            whole = slow_rollout([weights[image] for weights in expected])
            close(heat[image].flatten(), whole[start, 1:].mean(dim=0))


def test_rollout_keeps_the_sum_of_shares() -> None:
    attention = [torch.rand(2, 5, 5).softmax(dim=2) for _ in range(4)]
    close(roll_out(torch.eye(5)[:2], attention).sum(dim=1), torch.ones(2))


@torch.no_grad()
def test_recording_changes_no_output_and_leaves_nothing_behind() -> None:
    vit, pictures = tiny_vit(), torch.randn(2, 3, 24, 16)
    before = vit(pictures)
    with record_attention(vit.blocks) as maps:
        during = vit(pictures)
    after = vit(pictures)
    assert torch.equal(before, during)
    assert torch.equal(before, after)
    assert all(len(found) == 1 for found in maps.values())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in vit.modules())


def test_hooks_go_when_the_network_fails() -> None:
    vit = tiny_vit()
    with pytest.raises(ZeroDivisionError), record_attention(vit.blocks):
        raise ZeroDivisionError
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in vit.modules())


@pytest.mark.parametrize("settings", [{"is_causal": True}, {"attn_mask": torch.zeros(4, 4)}])
def test_attention_that_would_be_shown_wrongly_is_refused(settings: dict[str, object]) -> None:
    class Masked(nn.Module):
        def forward(self, tokens: Tensor) -> Tensor:
            return functional.scaled_dot_product_attention(tokens, tokens, tokens, **settings)

    module = Masked()
    with pytest.raises(ValueError, match="only plain attention"), record_attention([module]):
        module(torch.randn(1, 1, 4, 2))


def slow_mfu_maps(w: Weights, pictures: Tensor, *, depth: int, sharing: str) -> list[Tensor]:
    """Weights [B, N] of every MFU, CNN query first, from the images on."""
    offsets = torch.zeros(len(pictures), w["transformer.trunk.cls_token"].shape[-1]).double()
    maps = {
        "cnn": slow_resnet(part(w, "cnn.trunk"), pictures, "reid"),
        "transformer": slow_vit(part(w, "transformer.trunk"), pictures, offsets, VIT_TINY)[1],
    }
    refined = {b: slow_lru(part(w, OURS.lru[b]), maps[b], OURS) for b in BRANCHES}
    summaries = {b: slow_gem(part(w, OURS.gem[b]), refined[b]) for b in BRANCHES}
    other = dict(zip(BRANCHES, reversed(BRANCHES), strict=True))
    found = []
    for layer in range(depth):
        htm = part(w, f"htms.{layer}")
        tokens = {}
        for b in BRANCHES:
            sequence = slow_seu(
                part(htm, OURS.seu["shared", b]),
                summaries[b],
                refined[b].flatten(2).transpose(1, 2),
                OURS,
            )
            summaries[b], tokens[b] = sequence[:, 0], sequence[:, 1:]
        units = {b: part(htm, OURS.mfu[sharing, b]) for b in BRANCHES}
        for b in BRANCHES:
            unit = units[b]
            query = linear(
                part(unit, "query"), norm(part(unit, "norm_query"), summaries[b][:, None], 1e-5)
            )
            key = linear(part(unit, "key"), norm(part(unit, "norm_key"), tokens[other[b]], 1e-5))
            found.append(slow_weights(query, key, HEADS)[:, 0])
        summaries = {b: slow_mfu(units[b], summaries[b], tokens[other[b]], OURS) for b in BRANCHES}
    return found


@pytest.mark.parametrize("sharing", ["separate", "shared"])
@torch.no_grad()
def test_fusion_maps_are_those_of_the_reference(sharing: str) -> None:
    model = scrambled(small_model(camera_count=0, mfu_sharing=sharing)).eval()
    for key, value in model.state_dict().items():
        if "mfu" in key and key.endswith("query.weight"):
            value.mul_(10)  # untrained units read all tokens alike
    pictures = torch.randn(2, 3, *model.image_size, dtype=torch.float64)
    expected = slow_mfu_maps(model.state_dict(), pictures, depth=2, sharing=sharing)
    crosses = [e for e in model.explanations() if isinstance(e, CrossAttention)]
    with record_attention(m for e in crosses for m in e.modules) as maps:
        model(pictures)
    assert len(crosses) == len(expected) == 4
    assert model.cnn is not None
    assert model.transformer is not None
    for cross, weights, grid in zip(
        crosses, expected, 2 * [model.transformer.grid, model.cnn.grid], strict=True
    ):
        heat = cross.heat(maps)
        assert heat.shape[1:] == grid
        close(heat.flatten(1), weights)
        assert weights.std() > 1e-3


@pytest.mark.parametrize("options", [{}, small_lvit.CLASS_TOKENS, small_lvit.SEPARATE])
@torch.no_grad()
def test_last_dfcf_is_that_of_plain_loops(options: dict[str, object]) -> None:
    model = scrambled(small_lvit.small_model(**options)).eval()
    calls: list[tuple[Tensor, Tensor]] = []
    block = model.dfcf.blocks[-1]
    block.register_forward_pre_hook(lambda _, inputs: calls.append(inputs))
    crosses = [e for e in model.explanations() if isinstance(e, CrossAttention)]
    with record_attention(m for e in crosses for m in e.modules) as maps:
        model(torch.randn(1, 3, *model.image_size, dtype=torch.float64))
    local, globe = calls[-1]
    local, globe = block.local_side.norm(local), block.global_side.norm(globe)
    local_key, global_key = (
        side.key_value(tokens).chunk(2, dim=-1)[0]
        for side, tokens in ((block.local_side, local), (block.global_side, globe))
    )
    asked = local[:, :1] if "dfcf_exchange" in options else local
    expected = [
        slow_weights(block.local_side.query(asked), global_key, 3).mean(dim=1)[:, 1:],
        slow_weights(block.global_side.query(globe[:, :1]), local_key, 3)[:, 0],
    ]
    for cross, weights in zip(crosses, expected, strict=True):
        heat = cross.heat(maps).flatten(1)
        close(heat, weights[:, -heat.shape[1] :])


def test_grad_cam_is_gradient_times_activation() -> None:
    model, pictures = settled_model("levit_s"), images(2)
    kept: list[Tensor] = []
    model.branch_2.register_forward_hook(lambda *call: kept.append(call[2]))
    embedding = model(pictures).embedding
    (gradient,) = torch.autograd.grad(embedding.square().sum(), kept[0])
    expected = torch.zeros(2, *kept[0].shape[2:])
    for channel in range(gradient.shape[1]):
        share = gradient[:, channel].mean(dim=(1, 2))
        expected += share[:, None, None] * kept[0][:, channel].detach()
    heat = GradCam(title="", layer=model.branch_2).heat(
        model, pictures, None, lambda embedding_BE: embedding_BE.square().sum(dim=1)
    )
    largest = expected.abs().max()
    close(heat / largest, expected.clamp(min=0) / largest)
    assert heat.max() > 0
    assert all(p.grad is None for p in model.parameters())


@torch.no_grad()
def test_cosine_of_the_embeddings_is_the_mean_of_the_rows() -> None:
    model = new_model("la_transformer").eval()
    first, second = (model(images(2, seed=seed)).embedding for seed in (1, 2))
    (parts,) = (e for e in model.explanations() if isinstance(e, PartSimilarity))
    heat = parts.heat(first, second)
    assert heat.shape == (2, IMAGE_SIZE[0] // 16, 1)
    close(heat.mean(dim=(1, 2)), functional.cosine_similarity(first, second))
