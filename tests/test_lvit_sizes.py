"""The sizes and costs that LViT-Net's reconstruction states, its initial values, and the errors of
its options.
"""

import dataclasses
import itertools
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from reid_models import create_model, profile_model
from reid_models.lvit_net import LViTNet, LViTNetOptions
from tests.small_fusion import count
from tests.small_lvit import CLASS_TOKENS, CLASSES, LEVELS, SEPARATE, SWIN, small_model


@cache
def published(**options: object) -> LViTNet:
    with torch.device("meta"):
        return create_model("lvit_net", 751, image_size=(224, 224), **options).eval()


VIT, LOCAL, LMSF, DFCF, POSITION = 85_798_656, 3_160_032, 1_957_680, 14_175_752, 196 * 768
"""Parameters of the parts, stated as 85.8, 3.16, 1.96 and 14.18 M."""

NECK_AND_CLASSIFIER = 2 * 1536 + 751 * 1536


def test_stated_size() -> None:
    model = published()
    assert (count(model.transformer), count(model.local)) == (VIT, LOCAL)
    assert (count(model.lmsf), count(model.dfcf.blocks)) == (LMSF, DFCF)
    assert model.dfcf.position_1ND.numel() == POSITION
    without_head = VIT + LOCAL + LMSF + DFCF + POSITION
    assert count(model) == without_head + NECK_AND_CLASSIFIER
    assert [round(n / 1e6, 2) for n in (LOCAL, LMSF, DFCF, 4 * DFCF)] == [3.16, 1.96, 14.18, 56.7]
    assert round(VIT / 1e6, 1) == 85.8
    assert round(without_head / 1e6) == 105


@pytest.mark.parametrize("iterations", range(7))
@pytest.mark.parametrize("shared", [True, False])
def test_sizes_of_the_iteration_sweep(iterations: int, shared: bool) -> None:
    model = published(dfcf_iterations=iterations, share_iterations=shared)
    assert count(model.dfcf.blocks) == DFCF * (min(iterations, 1) if shared else iterations)
    assert (model.dfcf.position_1ND is not None) == (iterations > 0)
    assert model.embedding_dim == 1536


@pytest.mark.parametrize(
    ("options", "params"),
    [
        (LEVELS, 0),
        (CLASS_TOKENS, 0),
        ({**LEVELS, **SEPARATE}, 3 * DFCF),
        ({"reduction_dim": 768}, 1536 * 768 - 768 * (2 + 751)),
        ({"dfcf_mlp_ratio": 2}, -2 * 768 * (4 * 768 + 2)),
        ({"lmsf_reduction": 8}, 48 * (768 + 1 + 4 * 768)),
    ],
    ids=str,
)
def test_sizes_of_the_other_readings(options: dict[str, object], params: int) -> None:
    assert count(published(**options)) - count(published()) == params


def gmac(work: Callable[[], object], *, attention: bool = True) -> float:
    """Of an image; without attention the two products inside it are left out."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        work()
    flops = counter.get_flop_counts()["Global"].items()
    inside = ("attention", "bmm")
    return sum(f for op, f in flops if attention or not any(i in str(op) for i in inside)) / 2e9


def test_stated_costs() -> None:
    model = published()
    image = torch.zeros(1, 3, 224, 224, device="meta")
    maps = model.local(image)
    assert [tuple(m.shape[1:]) for m in maps] == [
        (96, 56, 56),
        (192, 28, 28),
        (384, 14, 14),
        (768, 7, 7),
    ]
    assert model.lmsf(maps).shape == (1, 768, 14, 14)
    local, whole = (torch.zeros(1, n, 768, device="meta") for n in (196, 197))
    (block,) = model.dfcf.blocks
    assert [tokens.shape for tokens in block(local, whole)] == [local.shape, whole.shape]
    iteration = gmac(lambda: block(local, whole), attention=False)
    assert round(gmac(lambda: model.transformer(image, None)), 1) == 17.6
    assert round(gmac(lambda: model.local(image)), 2) == 0.43
    assert round(gmac(lambda: model.lmsf(maps)), 2) == 0.35
    assert round(iteration, 2) == 2.78
    assert round(4 * iteration, 2) == 11.13


def test_whole_cost_is_the_stated_one_less_what_nothing_reads() -> None:
    """The stated 29.5 lacks the products inside DFCF's attention, but has the patch tokens of the
    last global update."""
    dim, patches, tokens = 768, 196, 197
    products = 4 * 2 * 2 * patches * tokens * dim / 1e9
    unread = patches * (2 * dim * dim + 2 * 4 * dim * dim + 2 * patches * dim) / 1e9
    whole = profile_model(published()).gmac
    assert whole == pytest.approx(29.5 + products - unread, rel=0.002)
    assert whole == pytest.approx(28.7, abs=0.05)
    costs = [profile_model(published(dfcf_iterations=t)).gmac for t in range(7)]
    steps = [after - before for before, after in itertools.pairwise(costs[1:])]
    assert steps == pytest.approx([2.78 + products / 4] * 5, rel=0.01)
    assert profile_model(published(**SEPARATE)).gmac == pytest.approx(whole)
    assert profile_model(published(**LEVELS)).gmac == pytest.approx(whole, rel=0.01)
    assert profile_model(published(**CLASS_TOKENS)).gmac < costs[0] + 2


def test_swin_at_its_published_size() -> None:
    model = published(**SWIN)
    assert count(model.transformer) == 27_519_354
    assert (model.transformer.dim, model.embedding_dim) == (768, 1536)
    depths = [
        block.drop_path2 for layer in model.transformer.trunk.layers for block in layer.blocks
    ]
    assert depths[-1].drop_prob == pytest.approx(0.1)
    assert profile_model(model).embedding_dim == 1536


def test_initial_values() -> None:
    model = small_model(local_widths=(32, 64, 96, 128), dfcf_iterations=2, reduction_dim=40)
    (block,) = model.dfcf.blocks
    for side in (block.local_side, block.global_side):
        assert side.residual_scales.tolist() == [1, 1, 1, 1]
        assert (side.dropout, side.mlp.drop1.p, side.mlp.drop2.p) == (0.1, 0.0, 0.1)
    assert not model.dfcf.position_1ND.any()
    for unit in (model.local, model.lmsf, model.dfcf, model.reduction):
        for layer in unit.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                spread, values = layer.weight.std().item(), layer.weight.numel()
                assert spread == pytest.approx(0.02, rel=5 / (2 * values) ** 0.5)
            elif isinstance(layer, nn.GroupNorm | nn.LayerNorm):
                assert layer.weight.eq(1).all()
            if getattr(layer, "bias", None) is not None:
                assert not layer.bias.any()
    head = model.heads["fused"]
    assert head.neck.weight.eq(1).all()
    assert not head.neck.bias.any()
    assert head.classifier.weight.std().item() == pytest.approx(0.001, rel=0.3)
    rates = [m.drop_path.drop_prob for m in model.local.modules() if hasattr(m, "drop_path")]
    assert rates == pytest.approx([0.1 * i / 7 for i in range(8)])
    rates = [getattr(b.drop_path1, "drop_prob", 0.0) for b in model.transformer.trunk.blocks]
    assert rates == pytest.approx([0.1 * i / 11 for i in range(12)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dfcf_iterations": -1}, "dfcf_iterations must be at least 0, got -1"),
        ({"dfcf_heads": 0}, "dfcf_heads must be at least 1, got 0"),
        ({"dfcf_heads": 5}, "dfcf_heads must divide the dim 192 of .*vit_tiny.* got 5"),
        ({"lmsf_reduction": 5}, "lmsf_reduction must divide the dim 192 of .* got 5"),
        ({"norm_groups": 5, "local_widths": (5, 5, 5, 5)}, "norm_groups must divide .* got 5"),
        ({"local_widths": (8, 16, 24)}, r"local_widths must be 4 .* got \(8, 16, 24\)"),
        ({"local_widths": (8, 16, 24, 30)}, r"multiples of norm_groups=8, got .*30\)"),
        ({"local_blocks": 0}, "local_blocks must be at least 1, got 0"),
        ({"lmsf_kernels": (3, 4)}, r"lmsf_kernels must be odd and positive, got \(3, 4\)"),
        ({"lmsf_kernels": ()}, r"lmsf_kernels must be odd and positive, got \(\)"),
        ({"reduction_dim": 0}, "reduction_dim must be at least 1 or None, got 0"),
        ({"drop_path": 1.0}, r"drop_path must lie in \[0, 1\), got 1.0"),
        ({"dfcf_dropout": -0.1}, r"dfcf_dropout must lie in \[0, 1\), got -0.1"),
        ({"dfcf_placement": "front"}, "must be one of behind, levels, got 'front'"),
        ({"dfcf_exchange": "all"}, "must be one of tokens, class_tokens, got 'all'"),
        ({"embed_kind": "logits"}, "embed_kind must be one of feature, neck, got 'logits'"),
        ({**LEVELS, "dfcf_iterations": 3}, "goes with dfcf_iterations=4 .* got 3 and 'tokens'"),
        ({**LEVELS, **CLASS_TOKENS}, "goes with .* got 4 and 'class_tokens'"),
        ({**SWIN, **LEVELS}, "'swin_tiny.*' goes with dfcf_placement='behind' only"),
        ({**SWIN, "patch_stride": 12}, "goes with patch_stride=16 only, got 12"),
        ({**SWIN, "side_information": 3.0}, "goes with side_information=0.0 only, got 3.0"),
        ({"transformer": "swin_tiny_patch4_window7_224.no"}, "timm has no such weights"),
        ({"transformer": "vit_base_patch16_223"}, "nearest name is 'vit_base_patch16_224'"),
    ],
    ids=str,
)
def test_wrong_options_are_named(options: dict[str, object], message: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        small_model(**options)


def test_wrong_image_sizes_are_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"multiple of 32 .* got \(250, 120\).* \(256, 128\)"):
        create_model("lvit_net", CLASSES, image_size=(250, 120))


def test_options_default_to_the_first_choice_of_the_reconstruction() -> None:
    assert dataclasses.asdict(LViTNetOptions()) == {
        "transformer": "vit_base_patch16_224",
        "transformer_weights": None,
        "patch_stride": 16,
        "drop_path": 0.1,
        "side_information": 0.0,
        "local_widths": (96, 192, 384, 768),
        "local_blocks": 2,
        "norm_groups": 32,
        "lmsf_kernels": (3, 5, 7),
        "lmsf_reduction": 16,
        "dfcf_iterations": 4,
        "share_iterations": True,
        "dfcf_placement": "behind",
        "dfcf_exchange": "tokens",
        "dfcf_heads": 12,
        "dfcf_mlp_ratio": 4,
        "dfcf_dropout": 0.1,
        "reduction_dim": None,
        "embed_kind": "feature",
    }
