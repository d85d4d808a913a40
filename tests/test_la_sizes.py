"""LA-Transformer's and LA-TF++'s published sizes, and which parameters train when."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from reid_models import ReidLoss, create_model, profile_model
from reid_models.la_transformer import LATransformer
from reid_models.la_units import UnfreezeSchedule, trainable_parameters
from tests.slow_la import CLASSES, DEPTH, random_images, small_model

UNUSED_CLASSIFIER = 577_519
"""Both published codes keep a 768 -> 751 layer in the backbone, which nothing uses."""


def published(
    name: str = "la_transformer",
    classes: int = 751,
    image_size: tuple[int, int] = (224, 224),
    **options: object,
) -> LATransformer:
    with torch.device("meta"):
        model = create_model(name, classes, image_size=image_size, **options)
    assert isinstance(model, LATransformer)
    return model


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("name", "classes", "total", "heads", "head"),
    [
        ("la_transformer", 751, 91_841_537, 14, 390_383),
        ("la_transformer", 62, 89_362_515, 14, 213_310),
        ("la_transformer_pp", 62, 86_589_485, 1, 213_310),
    ],
)
def test_published_sizes(name: str, classes: int, total: int, heads: int, head: int) -> None:
    model = published(name, classes)
    profile = profile_model(model)
    assert profile.params == total - UNUSED_CLASSIFIER
    assert count(model.transformer) == 85_798_656
    assert [count(module) for module in model.heads.values()] == [head] * heads
    assert profile.gmac == pytest.approx(17.56, rel=0.01)
    assert profile.embedding_dim == 10_752
    with FlopCounterMode(display=False) as counter:
        model.train()(torch.zeros(2, 3, 224, 224, device="meta"))
    training_gmac = counter.get_total_flops() / 2 / 2e9
    assert training_gmac - profile.gmac == pytest.approx(
        heads * 256 * (768 + classes) / 1e9, rel=1e-6
    )


@pytest.mark.parametrize(
    ("image_size", "stride", "grid"),
    [
        ((224, 224), 16, (14, 14)),
        ((256, 128), 16, (16, 8)),
        ((100, 50), 16, (6, 3)),
        ((16, 16), 16, (1, 1)),
        ((224, 224), 12, (18, 18)),
    ],
)
def test_rows_follow_the_patch_grid(
    image_size: tuple[int, int], stride: int, grid: tuple[int, int]
) -> None:
    model = published(image_size=image_size, patch_stride=stride).eval()
    assert model.transformer.grid == grid
    assert len(model.heads) == grid[0]
    embedding = model(torch.zeros(3, 3, *image_size, device="meta")).embedding
    assert embedding.shape == (3, grid[0] * 768) == (3, model.embedding_dim)
    assert published(image_size=image_size, embed_kind="mean").embedding_dim == 768


def test_initial_values() -> None:
    head = small_model(bottleneck_dim=512).heads["row_2"]
    assert head.reduction.weight.std().item() == pytest.approx((2 / 512) ** 0.5, rel=0.02)
    assert head.neck.weight.mean().item() == pytest.approx(1.0, abs=0.005)
    assert head.neck.weight.std().item() == pytest.approx(0.02, rel=0.15)
    assert head.classifier.weight.std().item() == pytest.approx(0.001, rel=0.1)
    assert not any(layer.bias.any() for layer in (head.reduction, head.neck, head.classifier))
    assert head.dropout.p == 0.5
    assert head.classifier.weight.shape == (CLASSES, 512)


OPENED = [20_962_817 + 7_087_872 * further for further in range(11)] + [91_841_537] * 4
"""Trainable parameters behind each of the 15 published calls, the unused classifier included."""


def test_published_unfreezing() -> None:
    model = published()
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}

    def trainable(schedule: UnfreezeSchedule, epoch: int) -> int:
        names = trainable_parameters(model, schedule, epoch)
        return sum(sizes[name] for name in names) + UNUSED_CLASSIFIER

    code = UnfreezeSchedule()
    assert OPENED[10] == 91_841_537
    for call, expected in enumerate(OPENED, start=1):
        for epoch in (2 * call - 2, 2 * call - 1):
            assert code.calls(epoch) == call
            assert trainable(code, epoch) == expected
    assert trainable(UnfreezeSchedule(at_epoch0=False), 0) == 6_787_073
    frozen = trainable_parameters(model, UnfreezeSchedule(at_epoch0=False), 1)
    assert {name.removeprefix("transformer.trunk.") for name in frozen} - {
        name for name in sizes if name.startswith("heads.")
    } == {
        "cls_token",
        "pos_embed",
        "patch_embed.proj.weight",
        "patch_embed.proj.bias",
        "norm.weight",
        "norm.bias",
    }


@pytest.mark.parametrize(
    ("schedule", "opened"),
    [
        (UnfreezeSchedule(), [2, 2, 3, 3, 4]),
        (UnfreezeSchedule(start=1), [1, 1, 2, 2, 3]),
        (UnfreezeSchedule(start=4, every=1), [4, 5, 6, 7, 8]),
        (UnfreezeSchedule(at_epoch0=False), [0, 0, 2, 2, 3]),
        (UnfreezeSchedule(start=1, every=3, at_epoch0=False), [0, 0, 0, 1, 1]),
    ],
)
def test_unfreezing_opens_the_last_blocks_first(
    schedule: UnfreezeSchedule, opened: list[int]
) -> None:
    with torch.device("meta"):
        model = small_model("la_transformer_pp")
    for epoch, blocks in enumerate(opened):
        names = trainable_parameters(model, schedule, epoch)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in names)
        trained = {name.split(".")[3] for name in names if ".blocks." in name}
        assert trained == {str(block) for block in range(DEPTH - blocks, DEPTH)}
        assert trainable_parameters(model, schedule, epoch) == names
    assert len(trainable_parameters(model, schedule, 99)) == len(list(model.parameters()))


def test_frozen_blocks_get_no_gradient_and_open_ones_do() -> None:
    model = small_model()
    names = trainable_parameters(model, UnfreezeSchedule(), 0)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    loss, _ = ReidLoss(model.loss_layout)(
        model(random_images(4).float()), torch.tensor([0, 1, 2, 3])
    )
    loss.backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == names


def test_unfreezing_rules_over_any_transformer_branch_and_leaves_the_rest() -> None:
    tiny = {"cnn": "resnet10t", "transformer": "vit_tiny_patch16_224", "fusion_dim": 24}
    with torch.device("meta"):
        model = create_model("fusion_reid", 2, image_size=(64, 32), fusion_heads=2, **tiny)
    names = trainable_parameters(model, UnfreezeSchedule(start=1), 0)
    left_out = {name for name, _ in model.named_parameters()} - names
    necks = {name for name in left_out if name.endswith("neck.bias")}
    assert len(necks) == 6
    assert {name.rsplit(".blocks.")[0] for name in left_out - necks} == {"transformer.trunk"}
    assert {name.split(".")[3] for name in left_out - necks} == {str(i) for i in range(11)}
    with pytest.raises(ValueError, match="Linear has no transformer branch"):
        trainable_parameters(nn.Linear(2, 2), UnfreezeSchedule(), 0)


def test_wrong_schedules_are_named() -> None:
    with pytest.raises(ValueError, match="start must be at least 1, got 0"):
        UnfreezeSchedule(start=0)
    with pytest.raises(ValueError, match="every must be at least 1, got -2"):
        UnfreezeSchedule(every=-2)
    with pytest.raises(ValueError, match="epochs are counted from 0, got -1"):
        UnfreezeSchedule().calls(-1)
