"""Every registered model keeps the contract: one parametrised file over the registry."""

import ast
import dataclasses
import inspect
import itertools
import textwrap

import pytest
import torch
from torch import Tensor

from reid_models import ReidLoss, create_model, list_models, model_options, profile_model
from reid_models.model import ReidModel

IMAGE_SIZE = (64, 32)
CAMERAS = 3
CLASSES = 5

SMALL = {
    "fusion_reid": {
        "cnn": "resnet10t",
        "transformer": "vit_tiny_patch16_224",
        "fusion_dim": 24,
        "fusion_heads": 2,
        "htm_depth": 2,
    },
}
"""Options that make each model small enough for a test."""


def small_model(name: str, *, camera_count: int = CAMERAS, **options: object) -> ReidModel:
    torch.manual_seed(0)
    return create_model(
        name, CLASSES, image_size=IMAGE_SIZE, camera_count=camera_count, **SMALL[name], **options
    )


def images(batch: int, seed: int = 1) -> Tensor:
    return torch.randn(batch, 3, *IMAGE_SIZE, generator=torch.Generator().manual_seed(seed))


def test_every_model_is_tested_here() -> None:
    assert list_models() == sorted(SMALL)


@pytest.mark.parametrize("name", list_models())
def test_training_output_serves_the_loss_layout(name: str) -> None:
    model = small_model(name)
    output = model(images(4), torch.tensor([0, 1, 2, -1]))
    assert output.embedding.shape == (4, model.embedding_dim)
    assert {term.head for term in model.loss_layout} == output.logits.keys()
    assert {term.head for term in model.loss_layout} == output.metric_features.keys()
    for head, logits_BC in output.logits.items():
        assert logits_BC.shape == (4, CLASSES)
        assert logits_BC.isfinite().all()
        assert output.metric_features[head].shape[0] == 4
        assert output.metric_features[head].isfinite().all()


@pytest.mark.parametrize("name", list_models())
def test_every_trainable_parameter_gets_a_finite_gradient(name: str) -> None:
    model = small_model(name)
    output = model(images(6), torch.tensor([0, 1, 2, 0, 1, 2]))
    loss, _ = ReidLoss(model.loss_layout)(output, torch.tensor([0, 0, 1, 1, 2, 2]))
    loss.backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    broken = [
        n for n, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()
    ]
    assert broken == []
    moved = sum(bool(p.grad.any()) for p in model.parameters() if p.grad is not None)
    assert moved > 0.9 * sum(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("name", list_models())
def test_bn_necks_keep_their_shift_at_zero(name: str) -> None:
    frozen = {n: p for n, p in small_model(name).named_parameters() if not p.requires_grad}
    assert frozen
    for parameter_name, bias in frozen.items():
        assert parameter_name.endswith("neck.bias")
        assert not bias.any()


@pytest.mark.parametrize("name", list_models())
@torch.no_grad()
def test_one_image_alone_embeds_as_in_a_batch(name: str) -> None:
    model = small_model(name).eval()
    cameras = torch.tensor([0, 2, -1])
    together = model(images(3), cameras)
    assert together.logits == {}
    assert together.metric_features == {}
    assert together.embedding.isfinite().all()
    for i in range(3):
        alone = model(images(3)[i : i + 1], cameras[i : i + 1]).embedding
        torch.testing.assert_close(alone, together.embedding[i : i + 1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", list_models())
@torch.no_grad()
def test_unknown_camera(name: str) -> None:
    model = small_model(name).eval()
    unknown = model(images(2), torch.tensor([-1, -1])).embedding
    torch.testing.assert_close(model(images(2)).embedding, unknown)
    by_camera = torch.stack([model(images(2), torch.tensor([k, k])).embedding for k in (0, 1, 2)])
    assert not torch.allclose(by_camera[0], by_camera[1])
    assert not torch.allclose(by_camera[0], unknown)


@pytest.mark.parametrize("name", list_models())
@pytest.mark.parametrize("camera_count", [0, 1])
@torch.no_grad()
def test_without_several_cameras_the_camera_is_ignored(name: str, camera_count: int) -> None:
    model = small_model(name, camera_count=camera_count).eval()
    torch.testing.assert_close(
        model(images(2), torch.tensor([0, 7])).embedding, model(images(2)).embedding
    )


@pytest.mark.parametrize("name", list_models())
@pytest.mark.parametrize("cameras", [[0, 3], [-2, 0]])
def test_camera_out_of_range(name: str, cameras: list[int]) -> None:
    with pytest.raises(ValueError, match=rf"0\.\.2.*{min(cameras)}\.\.{max(cameras)}"):
        small_model(name).eval()(images(2), torch.tensor(cameras))


@pytest.mark.parametrize("name", list_models())
def test_wrong_input_is_named(name: str) -> None:
    model = small_model(name).eval()
    with pytest.raises(ValueError, match=r"\[B, 3, 64, 32\], got \[1, 3, 32, 64\]"):
        model(torch.zeros(1, 3, 32, 64))
    with pytest.raises(ValueError, match=r"floating point values, got torch\.uint8"):
        model(torch.zeros(1, 3, *IMAGE_SIZE, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"shape \[2\], got torch.int64 of shape \[3\]"):
        model(images(2), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="at least 32x32"):
        create_model(name, CLASSES, image_size=(16, 16), **SMALL[name])


@pytest.mark.parametrize("name", list_models())
def test_channels_last_and_bfloat16_autocast(name: str) -> None:
    model = small_model(name).to(memory_format=torch.channels_last)
    batch = images(4).to(memory_format=torch.channels_last)
    labels = torch.tensor([0, 0, 1, 1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(batch, torch.tensor([0, 1, 2, 0]))
        loss, _ = ReidLoss(model.loss_layout)(output, labels)
    assert output.embedding.dtype == torch.float32
    assert loss.dtype == torch.float32
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)

    model.eval()
    with torch.no_grad():
        exact = model(images(4)).embedding
        with torch.autocast("cpu", dtype=torch.bfloat16):
            close = model(batch).embedding
    similarity = torch.nn.functional.cosine_similarity(exact, close)
    assert similarity.min() > 0.99


@pytest.mark.parametrize("name", list_models())
def test_profile(name: str) -> None:
    model = small_model(name)
    profile = profile_model(model)
    assert model.training
    assert profile.params == sum(p.numel() for p in model.parameters())
    assert (profile.embedding_dim, profile.image_size) == (model.embedding_dim, IMAGE_SIZE)
    with torch.device("meta"):
        on_meta = small_model(name)
    assert profile_model(on_meta) == profile
    assert profile.gmac > 0


@pytest.mark.parametrize("name", list_models())
def test_options_are_frozen_and_documented(name: str) -> None:
    options = model_options(name)
    assert dataclasses.is_dataclass(options)
    instance = options()
    field = dataclasses.fields(instance)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(instance, field, None)
    body = ast.parse(textwrap.dedent(inspect.getsource(options))).body[0].body
    documented = [
        before.target.id
        for before, after in itertools.pairwise(body)
        if isinstance(before, ast.AnnAssign) and isinstance(after, ast.Expr)
    ]
    assert documented == [f.name for f in dataclasses.fields(options)]


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="'fusion_red'; the nearest name is 'fusion_reid'"):
        create_model("fusion_red", CLASSES, image_size=IMAGE_SIZE)
    with pytest.raises(ValueError, match="'htm_dept'; the nearest name is 'htm_depth'"):
        create_model("fusion_reid", CLASSES, image_size=IMAGE_SIZE, htm_dept=2)
    with pytest.raises(ValueError, match="'fusion_red'"):
        model_options("fusion_red")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"camera_count": -1}, "camera_count must be at least 0, got -1"),
        ({"image_size": (64,)}, r"\(height, width\) in pixels, got \(64,\)"),
    ],
)
def test_wrong_sizes_of_the_task(changes: dict[str, object], message: str) -> None:
    task = {"num_classes": CLASSES, "image_size": IMAGE_SIZE, "camera_count": CAMERAS, **changes}
    num_classes = task.pop("num_classes")
    with pytest.raises(ValueError, match=message):
        create_model("fusion_reid", num_classes, **task, **SMALL["fusion_reid"])
