"""LEViT's published sizes, costs and starting values, and what its options refuse."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from reid_models import create_model, profile_model
from reid_models.levit import LEViT, LEViTClassifier, LEViTOptions
from reid_models.levit_import import official_state_dict
from tests.slow_levit import CLASSES, SIZES, classifier_shapes, reid_shapes, small_model


@pytest.mark.parametrize("ratio", [1, 2])
@pytest.mark.parametrize("size", SIZES)
def test_published_layout(size: str, ratio: int) -> None:
    with torch.device("meta"):
        classifier = LEViTClassifier(SIZES[size], mlp_ratio=ratio)
        reid = create_model(size, CLASSES, image_size=(256, 128), mlp_ratio=ratio)
    assert isinstance(reid, LEViT)
    state = official_state_dict(classifier)
    assert len(state) == 673
    assert {k: tuple(v.shape) for k, v in state.items()} == classifier_shapes(size, ratio)
    in_reid = {k: tuple(v.shape) for k, v in official_state_dict(reid).items()}
    assert in_reid == reid_shapes(size, ratio)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("size", "stages"),
    [
        ("levit_s", (166_148, 999_182, 1_252_224)),
        ("levit_l", (509_448, 3_491_356, 4_863_744)),
    ],
)
def test_parameters_of_each_part(size: str, stages: tuple[int, int, int]) -> None:
    with torch.device("meta"):
        parts = LEViTClassifier(SIZES[size]).backbone
    assert count(parts.stem) == 16_752
    assert (count(parts.stage1), count(parts.stage2), count(parts.stage3)) == stages


def published(size: str, image_size: tuple[int, int] = (256, 128), **options: object) -> LEViT:
    with torch.device("meta"):
        model = create_model(size, 751, image_size=image_size, **options)
    assert isinstance(model, LEViT)
    return model


@pytest.mark.parametrize(
    ("size", "ratio", "backbone", "imagenet", "whole", "without_classifiers"),
    [
        ("levit_s", 1, 2_434_306, 2_819_306, 5.132, 3.690),
        ("levit_l", 1, 8_881_300, 9_650_300, 16.637, 13.753),
        ("levit_l", 2, 15_820_948, 16_589_948, 28.12, 25.24),
    ],
)
def test_parameters_of_either_form(
    size: str, ratio: int, backbone: int, imagenet: int, whole: float, without_classifiers: float
) -> None:
    model = published(size, mlp_ratio=ratio)
    with torch.device("meta"):
        assert count(LEViTClassifier(SIZES[size], mlp_ratio=ratio)) == imagenet
    classifiers = sum(count(head.classifier) for head in model.heads.values())
    assert count(model.backbone) == backbone
    assert count(model.branch_2) == count(model.backbone.stage3)
    figures = (count(model) / 1e6, (count(model) - classifiers) / 1e6)
    assert figures == pytest.approx(
        (whole, without_classifiers), abs=0.0051 if ratio == 2 else 5e-4
    )


@pytest.mark.parametrize(
    ("size", "image_size", "layers", "attention", "printed"),
    [
        ("levit_s", (256, 128), 0.607, 0.052, 0.627),
        ("levit_s", (384, 128), 0.909, 0.079, 0.940),
        ("levit_s", (256, 256), 1.212, 0.105, 1.254),
        ("levit_s", (384, 384), 2.725, 0.236, None),
        ("levit_l", (256, 128), 2.061, 0.096, 2.100),
        ("levit_l", (384, 128), 3.090, 0.145, 3.148),
        ("levit_l", (256, 256), 4.120, 0.193, 4.197),
        ("levit_l", (384, 384), 9.265, 0.434, None),
    ],
)
def test_cost_and_shapes(
    size: str,
    image_size: tuple[int, int],
    layers: float,
    attention: float,
    printed: float | None,
) -> None:
    """`printed`: what thop prints, by which the costs were published. It counts four operations for
    each value that is normalised, and nothing inside the attention."""
    model = published(size, image_size)
    dim = 4 * SIZES[size].dim
    normalised: list[int] = []
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            norm.register_forward_hook(lambda *call: normalised.append(call[2].numel()))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        output = model(images := torch.zeros(2, 3, *image_size, device="meta"))
    costs = {str(op): flops / 4e9 for op, flops in counter.get_flop_counts()["Global"].items()}
    inside = sum(cost for op, cost in costs.items() if "attention" in op or "bmm" in op)
    assert inside == pytest.approx(attention, abs=6e-4)
    assert sum(costs.values()) - inside == pytest.approx(layers, abs=6e-4)
    if printed is not None:
        assert layers + 4 * sum(normalised) / 2e9 == pytest.approx(printed, abs=1.1e-3)
    profile = profile_model(model)
    classifiers = 5 * dim * 751 / 1e9
    assert profile.gmac == pytest.approx(sum(costs.values()) - classifiers, rel=1e-6)
    assert profile.embedding_dim == {"levit_s": 1920, "levit_l": 3840}[size] == 5 * dim
    assert (model.backbone.dim, model.backbone.grid) == (
        dim,
        (image_size[0] // 16, image_size[1] // 16),
    )
    trunk = model.backbone.trunk(images)
    assert trunk.shape == (2, dim // 2, *model.backbone.grid)
    assert model.backbone.stage3(trunk).shape == (2, dim, *model.backbone.grid)
    assert model.backbone.stage1(model.backbone.stem(images)).shape[2:] == (
        image_size[0] // 8,
        image_size[1] // 8,
    )
    assert output.embedding.shape == (2, 5 * dim)
    assert {logits.shape for logits in output.logits.values()} == {(2, 751)}


def test_classifier_shapes() -> None:
    with torch.device("meta"):
        classifier = LEViTClassifier(SIZES["levit_s"])
        assert classifier(torch.zeros(2, 3, 224, 224)).shape == (2, 1000)
        assert classifier.backbone(torch.zeros(2, 3, 224, 224)).shape == (2, 384, 7, 7)
    assert classifier.backbone.grid == (7, 7)
    assert classifier.backbone.stage1[0].attention.window == 7
    with pytest.raises(ValueError, match=r"shape \[B, 3, 224, 224\], got \[2, 3, 256, 128\]"):
        classifier(torch.zeros(2, 3, 256, 128))


def test_initial_values() -> None:
    model = small_model("levit_l")
    block = model.backbone.stage2[3]
    assert block.attention.logit_scale.exp().flatten().tolist() == pytest.approx([10.0] * 4)
    classifier = LEViTClassifier(SIZES["levit_s"])
    assert not classifier.head.bias.any()
    filters = [m for m in (*model.modules(), *classifier.modules()) if isinstance(m, nn.Conv2d)]
    for layer in (*filters, classifier.head):
        spread, fan_in, values = layer.weight.std(), layer.weight[0].numel(), layer.weight.numel()
        assert spread.item() == pytest.approx((2 / fan_in) ** 0.5, rel=5 / (2 * values) ** 0.5)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.weight.eq(1).all()
            assert not layer.bias.any()
    own, copied = model.backbone.stage3.state_dict(), model.branch_2.state_dict()
    assert own.keys() == copied.keys()
    assert all(torch.equal(own[key], copied[key]) for key in own)
    assert not {v.data_ptr() for v in own.values()} & {v.data_ptr() for v in copied.values()}
    for name, head in model.heads.items():
        assert head.neck.weight.std().item() == pytest.approx(0.1, rel=0.1)
        assert head.neck.weight.mean().item() == pytest.approx(1, abs=0.02)
        assert head.neck.bias.std().item() == pytest.approx(0.1, rel=0.1)
        assert head.neck.bias.mean().item() == pytest.approx(0, abs=0.02)
        assert head.neck.bias.requires_grad == name.startswith("average")
        assert head.classifier.weight.std().item() == pytest.approx(0.001, rel=0.1)


@pytest.mark.parametrize(
    ("size", "drop_path", "largest"),
    [("levit_s", None, 0.05), ("levit_l", None, 0.15), ("levit_l", 0.28, 0.28)],
)
def test_drop_path_grows_over_all_blocks(
    size: str, drop_path: float | None, largest: float
) -> None:
    model = published(size, drop_path=drop_path)
    stages = (model.backbone.stage1, model.backbone.stage2, model.backbone.stage3)
    rates = [block.drop_path.drop_prob for stage in stages for block in stage]
    assert rates == pytest.approx([largest * i / 14 for i in range(15)])
    assert [block.drop_path.drop_prob for block in model.branch_2] == rates[11:]
    with torch.device("meta"):
        pretraining = [LEViTClassifier(s).backbone.stage3[3] for s in SIZES.values()]
    assert [block.drop_path.drop_prob for block in pretraining] == [0.05, 0.10]


def test_neck_options() -> None:
    model = small_model(neck_std=0.0)
    assert all(head.neck.weight.eq(1).all() for head in model.heads.values())
    model = small_model(frozen_neck_shift="zero")
    shifts = {name: head.neck.bias for name, head in model.heads.items()}
    assert [name for name, shift in shifts.items() if shift.any()] == ["average_1", "average_2"]


@pytest.mark.parametrize(
    ("window", "image_size", "message"),
    [
        (8, (256, 100), r"at least 128x128; got \(256, 100\), the nearest is \(256, 128\)"),
        (8, (64, 64), r"16 times window=8 .* got \(64, 64\), the nearest is \(128, 128\)"),
        (7, (256, 128), r"16 times window=7 .* the nearest is \(224, 112\)"),
    ],
)
def test_image_sizes_that_windows_do_not_tile(
    window: int, image_size: tuple[int, int], message: str
) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        small_model(window=window, image_size=image_size)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 1}, "window must be at least 2, got 1"),
        ({"mlp_ratio": 0}, "mlp_ratio must be at least 1, got 0"),
        ({"drop_path": 1.0}, r"drop_path must lie in \[0, 1\), got 1.0"),
        ({"neck_std": -0.1}, "neck_std must be >= 0, got -0.1"),
        ({"frozen_neck_shift": "one"}, "must be one of random, zero, got 'one'"),
    ],
)
def test_wrong_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_model(**options)


def test_options_default_to_the_published_model() -> None:
    assert dataclasses.asdict(LEViTOptions()) == {
        "window": 8,
        "mlp_ratio": 1,
        "drop_path": None,
        "neck_std": 0.1,
        "frozen_neck_shift": "random",
        "backbone_weights": None,
    }
