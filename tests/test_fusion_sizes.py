"""FusionReID's published sizes, costs and initial values, and the errors of its options.

The published parameter counts are those of the official code, which also keeps the pretraining's
classifier of the transformer, without any use: it is added here where totals are compared. The
published costs are `thop`'s, which leave attention's own products out.
"""

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from reid_models import create_model, profile_model
from reid_models.cnn_branch import CnnBranch
from reid_models.fusion_plan import FEATURE_NAMES
from reid_models.fusion_reid import FusionReID, FusionReIDOptions
from tests.small_fusion import count, small_model

UNUSED_OF_VIT = 769_000
UNUSED_OF_T2T_14 = (384 + 1) * 1041
UNUSED_OF_T2T_24 = (512 + 1) * 1041
MARKET, MSMT = (751, 6), (1041, 15)
"""Identities and cameras."""

T2T_14 = {"transformer": "t2t_vit_t_14", "patch_stride": 16}
T2T_24 = {"transformer": "t2t_vit_t_24", "patch_stride": 16}


def published(
    dataset: tuple[int, int] = MARKET, image_size: tuple[int, int] = (256, 128), **options: object
) -> FusionReID:
    with torch.device("meta"):
        return create_model(
            "fusion_reid", dataset[0], image_size=image_size, camera_count=dataset[1], **options
        )


def gmac_without_attention(model: FusionReID) -> float:
    image = torch.zeros(1, 3, *model.image_size, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(image)
    flops = counter.get_flop_counts()["Global"]
    counted = [f for op, f in flops.items() if "attention" not in str(op) and "bmm" not in str(op)]
    return sum(counted) / 2e9


def test_published_size() -> None:
    model = published()
    profile = profile_model(model)
    assert profile.params == 159_225_903 - UNUSED_OF_VIT
    assert profile.embedding_dim == 5888
    assert profile.gmac == pytest.approx(29.07, abs=0.005)
    assert model.cnn.grid == (16, 8)
    assert model.transformer.grid == (21, 10)
    head = 751 * 768 + 2 * 768
    assert {
        "cnn": count(model.cnn),
        "transformer": count(model.transformer),
        "side information": count(model.transformer.side_information),
        "position": model.transformer.trunk.pos_embed.numel(),
        "lru cnn": count(model.lru["cnn"]),
        "lru transformer": count(model.lru["transformer"]),
        "seu": count(model.htms[0].seu),
        "mfu": count(model.htms[0].mfu["cnn"]),
        "htms": count(model.htms),
        "heads": {name: count(model.heads[name]) for name in FEATURE_NAMES},
        "gems": [count(model.gem_global), count(model.gem)],
    } == {
        "cnn": 23_508_032,
        "transformer": 86_583_016 - UNUSED_OF_VIT,
        "side information": 4_608,
        "position": 162_048,
        "lru cnn": 1_583_362,
        "lru transformer": 595_202,
        "seu": 7_087_104,
        "mfu": 7_087_104,
        "htms": 42_522_624,
        "heads": {**dict.fromkeys(FEATURE_NAMES, head), "cnn_global": 4_096 + 1_538_048},
        "gems": [1, 2],
    }


@pytest.mark.parametrize(
    ("seu", "mfu", "params", "htms"),
    [
        ("shared", "separate", 159_225_903, 42_522_624),
        ("separate", "separate", 173_400_111, 56_696_832),
        ("separate", "shared", 159_225_903, 42_522_624),
        ("shared", "shared", 145_051_695, 28_348_416),
    ],
)
def test_sizes_of_the_sharing_patterns(seu: str, mfu: str, params: int, htms: int) -> None:
    model = published(seu_sharing=seu, mfu_sharing=mfu)
    assert count(model) == params - UNUSED_OF_VIT
    assert count(model.htms) == htms


@pytest.mark.parametrize(
    ("options", "millions", "gmac"),
    [
        ({"transformer": None}, 25.644, 4.086),
        ({"transformer": None, "cnn": "resnet101"}, 44.636, 6.524),
        ({"transformer": None, "cnn": "resnet152"}, 60.280, 8.965),
        ({"cnn": None, **T2T_14}, 21.937, 2.846),
        ({"cnn": None, **T2T_24}, 64.629, 8.316),
        ({"cnn": None}, 87.391, 18.061),
        ({"cnn": None, "transformer": "deit_base_patch16_224"}, 87.391, 18.061),
        ({"cnn": None, "patch_stride": 16}, 87.328, 11.042),
        (T2T_14, 95.190, 11.461),
        ({}, 160.940, 28.119),
        ({"transformer": "deit_base_patch16_224"}, 160.940, 28.119),
        ({"cnn": "resnet101", **T2T_14}, 114.182, 13.898),
        ({"cnn": "resnet101"}, 179.932, 30.557),
        ({"cnn": "resnet152", **T2T_14}, 129.826, 16.339),
        ({"cnn": "resnet152"}, 195.576, 32.998),
        ({"fusion_dim": 384}, 126.376, 23.726),
        ({"fusion_dim": 576}, 141.004, 25.571),
        ({"fusion_dim": 1152}, 216.738, 35.329),
        ({"fusion_dim": 1536}, 293.769, 45.356),
        ({"htm_depth": 1}, 139.679, 25.298),
        ({"htm_depth": 3}, 182.202, 30.940),
        ({"htm_depth": 4}, 203.463, 33.761),
        ({"htm_depth": 5}, 224.724, 36.583),
        ({"htm_depth": 6}, 245.986, 39.404),
        ({"patch_stride": 16}, 160.877, 19.695),
        ({"image_size": (384, 128)}, 161.017, 41.596),
        ({"image_size": (384, 128), "patch_stride": 16}, 160.927, 29.473),
        ({"seu_sharing": "separate"}, 175.115, 28.119),
    ],
    ids=str,
)
def test_published_table(options: dict[str, object], millions: float, gmac: float) -> None:
    model = published(MSMT, **options)
    transformer = options.get("transformer", "vit_base_patch16_224")
    unused = {None: 0, "t2t_vit_t_14": UNUSED_OF_T2T_14, "t2t_vit_t_24": UNUSED_OF_T2T_24}
    params = count(model) + unused.get(transformer, UNUSED_OF_VIT)
    assert round(params / 1e6, 3) == millions
    assert gmac_without_attention(model) == pytest.approx(gmac, rel=0.01)


@pytest.mark.parametrize(
    ("options", "dim"),
    [
        ({"fusion_dim": 384}, 4352),
        ({"fusion_dim": 576}, 5120),
        ({"fusion_dim": 1152}, 7424),
        ({"fusion_dim": 1536}, 8960),
        ({"htm_depth": 6}, 5888),
        (T2T_14, 5504),
    ],
    ids=str,
)
def test_published_embedding_dims(options: dict[str, object], dim: int) -> None:
    assert published(**options).embedding_dim == dim


@pytest.mark.parametrize(
    ("image_size", "stride", "grid"),
    [((256, 128), 16, (16, 8)), ((384, 128), 12, (31, 10)), ((384, 128), 16, (24, 8))],
)
def test_patch_grids(image_size: tuple[int, int], stride: int, grid: tuple[int, int]) -> None:
    model = published(image_size=image_size, patch_stride=stride)
    assert model.transformer.grid == grid
    assert model.transformer.trunk.pos_embed.shape == (1, 1 + grid[0] * grid[1], 768)


def test_initial_values() -> None:
    model = small_model()
    trunk = model.transformer.trunk
    expected_std = {
        "class token": (trunk.cls_token, 0.02),
        "position": (trunk.pos_embed, 0.02),
        "cameras": (model.transformer.side_information.table_KC, 0.02),
        "patches": (trunk.patch_embed.proj.weight, (2 / (16 * 16 * 192)) ** 0.5),
        "vit linear": (trunk.blocks[3].mlp.fc1.weight, 0.02),
        "classifier": (model.heads["cnn_global"].classifier.weight, 0.001),
    }
    for name, (values, std) in expected_std.items():
        assert values.std().item() == pytest.approx(std, rel=0.15), name
    assert model.gem["cnn"].p.item() == 3
    assert model.lru["cnn"][2].weight.tolist() == [0.25]
    assert not trunk.blocks[3].mlp.fc1.bias.any()
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in trunk.blocks]
    assert rates == pytest.approx([0.1 * i / 11 for i in range(12)])


def test_a_shortcut_that_pools_does_not_pool_where_nothing_is_halved() -> None:
    with torch.device("meta"):
        trunk = CnnBranch("resnet26d", (64, 32)).trunk
        halving = CnnBranch("resnet26d", (64, 32), last_stride=2).trunk
    pools = torch.nn.AvgPool2d
    assert not any(isinstance(m, pools) for m in trunk.layer4.modules())
    assert any(isinstance(m, pools) for m in trunk.layer3.modules())
    assert any(isinstance(m, pools) for m in halving.layer4.modules())


@pytest.mark.parametrize("cnn", ["resnet10t", "tf_efficientnet_lite0", "mobilenetv2_100"])
def test_last_stride_keeps_the_resolution_without_dilation(cnn: str) -> None:
    with torch.device("meta"):
        kept = small_model(cnn=cnn)
        as_published = small_model(cnn=cnn, last_stride=2)
    assert kept.cnn.grid == (4, 2)
    assert as_published.cnn.grid == (2, 1)
    convolutions = [m for m in kept.cnn.modules() if isinstance(m, torch.nn.Conv2d)]
    assert {m.dilation for m in convolutions} == {(1, 1)}
    assert count(kept) == count(as_published)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cnn": "rsnet50"}, "cnn='rsnet50' is no timm model; the nearest name is 'resnet50'"),
        ({"transformer": "vit_base_patch16_223"}, "the nearest name is 'vit_base_patch16_224'"),
        ({"transformer": "t2t_vit_14"}, "the nearest name is 't2t_vit_t_14'"),
        ({"cnn": "resnet50.nowhere"}, "timm has no such weights; it has resnet50.a1_in1k"),
        ({"transformer": "resnet50"}, "transformer='resnet50' is no plain vision transformer"),
        ({"transformer": "vit_base_patch16_siglip_224"}, "is no plain vision transformer"),
        ({"cnn": "vit_tiny_patch16_224"}, "cannot keep the resolution of its last stage"),
        ({"cnn": "vit_tiny_patch16_224", "last_stride": 2}, r"cannot take images of \(64, 32\)"),
        ({"cnn": "densenet121"}, "'densenet121' cannot keep .* use last_stride=2"),
        ({"cnn": None, "transformer": None}, "cannot both be None"),
        ({"cnn": None, "cnn_weights": "timm"}, "cnn_weights='timm' without a cnn to load them"),
        ({"patch_stride": 17}, r"lie in 1\.\.16 .* got patch_stride=17"),
        ({"patch_stride": 0}, "patch_stride must be at least 1, got 0"),
        ({"transformer": "t2t_vit_t_14"}, "patch_stride must be 16, got 12"),
        ({"view_count": -1}, "view_count must be at least 0, got -1"),
        ({"fusion_dim": 13}, "multiple of fusion_heads=3, got 13"),
        ({"fusion_heads": 0}, "fusion_heads must be at least 1, got 0"),
        ({"htm_depth": 0}, "htm_depth must be at least 1, got 0"),
        ({"lru_kernel": 2}, "lru_kernel must be odd and positive, got 2"),
        ({"last_stride": 3}, "last_stride must be 1 or 2, got 3"),
        ({"drop_path": 1.0}, r"drop_path must lie in \[0, 1\), got 1.0"),
        ({"stem": "deep"}, "stem must be one of reid, torchvision, got 'deep'"),
        ({"seu_sharing": "none"}, "seu_sharing must be one of shared, separate, got 'none'"),
        ({"mfu_sharing": "none"}, "mfu_sharing must be one of shared, separate, got 'none'"),
        ({"htm_mode": "none"}, "htm_mode must be one of encode_fuse, encode, .* got 'none'"),
        ({"embed_features": ("cnn",)}, "distinct names out of cnn_global"),
        ({"embed_features": ()}, "distinct names out of cnn_global"),
        (
            {"cnn": None, "embed_features": ("cnn_global",)},
            "distinct names out of transformer_global, got .'cnn_global'",
        ),
    ],
    ids=str,
)
def test_wrong_options_are_named(options: dict[str, object], message: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        small_model(**options)


def test_options_default_to_the_published_model() -> None:
    assert dataclasses.asdict(FusionReIDOptions()) == {
        "cnn": "resnet50",
        "cnn_weights": None,
        "stem": "reid",
        "last_stride": 1,
        "transformer": "vit_base_patch16_224",
        "transformer_weights": None,
        "patch_stride": 12,
        "drop_path": 0.1,
        "side_information": 3.0,
        "view_count": 0,
        "fusion_dim": 768,
        "fusion_heads": 12,
        "htm_depth": 2,
        "htm_mode": "encode_fuse",
        "seu_sharing": "shared",
        "mfu_sharing": "separate",
        "lru_kernel": 1,
        "embed_features": "all",
    }
