"""Every registered model keeps the contract: one parametrised file over the registry."""

import copy
import dataclasses
import functools
import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from pipelines.embedder import CARD, WEIGHTS, Embedder, ModelCard, read_card
from pipelines.engine import save_weights, to_model_input
from reid_models import (
    ReidModel,
    ReidOutput,
    create_model,
    list_models,
    model_options,
    profile_model,
    weights,
)
from tests.small_models import (
    CAMERAS,
    CLASSES,
    IMAGE_SIZE,
    SMALL,
    cameras,
    images,
    loss_of,
    new_model,
    settled_model,
)

every_model = pytest.mark.parametrize("name", list_models())
half_types = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


@functools.cache
def settled(name: str) -> ReidModel:
    """For the tests that leave the model as it is, which would build it anew each."""
    return settled_model(name)


def test_every_model_is_tested_here() -> None:
    assert list_models() == sorted(SMALL)


@every_model
def test_training_output_serves_the_loss_layout(name: str) -> None:
    model = new_model(name)
    output = model(images(4), cameras(4))
    assert output.embedding.shape == (4, model.embedding_dim)
    assert {term.head for term in model.loss_layout} == output.logits.keys()
    assert {term.head for term in model.loss_layout} == output.metric_features.keys()
    for head, logits_BC in output.logits.items():
        assert logits_BC.shape == (4, CLASSES)
        assert logits_BC.isfinite().all()
        assert output.metric_features[head].shape[0] == 4
        assert output.metric_features[head].isfinite().all()


@every_model
def test_every_trainable_parameter_gets_a_finite_gradient(name: str) -> None:
    model = new_model(name, **SMALL[name].no_chance)
    with torch.no_grad():
        for parameter in model.parameters():  # a factor that starts at 0 hides those behind it
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn_like(parameter))
    loss_of(model, images(8)).backward()
    trained = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert [n for n, grad in trained.items() if grad is None] == []
    assert [n for n, grad in trained.items() if not grad.isfinite().all()] == []
    assert [n for n, grad in trained.items() if not grad.any()] == []


@every_model
def test_nothing_but_shifts_of_necks_is_frozen(name: str) -> None:
    model = new_model(name)
    frozen = {n: p for n, p in model.named_parameters() if not p.requires_grad}
    assert len(frozen) == SMALL[name].frozen
    assert all(n.endswith("neck.bias") for n in frozen)
    loss_of(model, images(8)).backward()
    assert all(p.grad is None and not p.any() for p in frozen.values())


@every_model
@torch.no_grad()
def test_one_image_alone_embeds_as_in_a_batch(name: str) -> None:
    model = settled(name)
    together = model(images(3), cameras(3))
    assert together.embedding.shape == (3, model.embedding_dim)
    assert together.logits == {}
    assert together.metric_features == {}
    for i in range(3):
        alone = model(images(3)[i : i + 1], cameras(3)[i : i + 1]).embedding
        torch.testing.assert_close(alone, together.embedding[i : i + 1], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(together.embedding[0], together.embedding[1], atol=1e-3)


@every_model
@torch.no_grad()
def test_eval_is_deterministic_and_leaves_no_trace(name: str) -> None:
    model = settled(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    first, second = (model(images(3), cameras(3)).embedding for _ in range(2))
    assert torch.equal(first, second)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@every_model
@torch.no_grad()
def test_unknown_camera(name: str) -> None:
    model = settled(name)
    one, other, unknown, none = (
        model(images(2), None if camera is None else torch.tensor([camera, camera])).embedding
        for camera in (0, 1, -1, None)
    )
    assert torch.equal(unknown, none)
    assert torch.equal(one, other) != SMALL[name].reads_camera
    assert torch.equal(one, unknown) != SMALL[name].reads_camera


@every_model
@pytest.mark.parametrize("camera_count", [0, 1])
@torch.no_grad()
def test_without_several_cameras_the_camera_is_ignored(name: str, camera_count: int) -> None:
    model = new_model(name, camera_count=camera_count).eval()
    assert torch.equal(model(images(2), torch.tensor([0, 7])).embedding, model(images(2)).embedding)


@every_model
@pytest.mark.parametrize("indices", [[0, 3], [-2, 0]])
def test_camera_out_of_range(name: str, indices: list[int]) -> None:
    with pytest.raises(ValueError, match=rf"0\.\.2.*{min(indices)}\.\.{max(indices)}"):
        settled(name)(images(2), torch.tensor(indices))


@every_model
def test_wrong_input_is_named(name: str) -> None:
    model = settled(name)
    with pytest.raises(ValueError, match=r"\[B, 3, 64, 32\], got \[1, 3, 32, 64\]"):
        model(torch.zeros(1, 3, 32, 64))
    with pytest.raises(ValueError, match=r"floating point values, got torch\.uint8"):
        model(torch.zeros(1, 3, *IMAGE_SIZE, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"shape \[2\], got torch.int64 of shape \[3\]"):
        model(images(2), torch.zeros(3, dtype=torch.int64))


@every_model
@half_types
def test_training_under_autocast(name: str, dtype: torch.dtype) -> None:
    model = new_model(name, **SMALL[name].no_chance)
    outputs: list[ReidOutput] = []
    model.register_forward_hook(lambda *call: outputs.append(call[2]))
    with torch.autocast("cpu", dtype=dtype):
        loss = loss_of(model, images(8))
    output = outputs[0]
    assert output.embedding.dtype == torch.float32
    assert all(f.dtype == torch.float32 for f in output.metric_features.values())
    assert loss.dtype == torch.float32
    with torch.no_grad():
        torch.testing.assert_close(loss, loss_of(model, images(8)), rtol=0.02, atol=0.02)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@every_model
@half_types
@pytest.mark.parametrize("contrast", [1, 50], ids="contrast{}".format)
@torch.no_grad()
def test_embedding_under_autocast(name: str, dtype: torch.dtype, contrast: int) -> None:
    """Of usual images, and of such as bring cubes and sums of squares beyond float16."""
    model = settled(name)
    batch = contrast * images(4)
    exact = model(batch, cameras(4)).embedding
    with torch.autocast("cpu", dtype=dtype):
        close = model(batch, cameras(4)).embedding
    assert close.dtype == torch.float32
    assert close.isfinite().all()
    assert functional.cosine_similarity(exact, close).min() > 0.97


@every_model
@torch.no_grad()
def test_embedding_with_channels_last(name: str) -> None:
    model = copy.deepcopy(settled(name)).to(memory_format=torch.channels_last)
    batch = images(4).to(memory_format=torch.channels_last)
    expected = settled(name)(images(4), cameras(4)).embedding
    torch.testing.assert_close(model(batch, cameras(4)).embedding, expected, rtol=1e-4, atol=1e-4)


@every_model
def test_training_with_channels_last(name: str) -> None:
    model = new_model(name, **SMALL[name].no_chance)
    with torch.no_grad():
        expected = loss_of(copy.deepcopy(model), images(8))
    model = model.to(memory_format=torch.channels_last)
    loss = loss_of(model, images(8).to(memory_format=torch.channels_last))
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@every_model
@torch.no_grad()
def test_weights_file_round_trip(name: str, tmp_path: Path) -> None:
    model = settled(name)
    weights.save_model(model, tmp_path / "m.safetensors")
    again = create_model(
        name,
        CLASSES,
        image_size=IMAGE_SIZE,
        camera_count=CAMERAS,
        pretrained=tmp_path / "m.safetensors",
        **SMALL[name].options,
    )
    assert again.training
    before = model.state_dict()
    for key, value in again.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert torch.equal(
        again.eval()(images(3), cameras(3)).embedding, model(images(3), cameras(3)).embedding
    )


@every_model
@torch.no_grad()
def test_model_folder_round_trip(name: str, tmp_path: Path) -> None:
    model = settled(name)
    options = dataclasses.asdict(model_options(name)(**SMALL[name].options))
    card = ModelCard(
        model=name,
        options=options,
        num_classes=CLASSES,
        cameras=("north", "east", "south"),
        image_size=IMAGE_SIZE,
        mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.3, 0.4),
        interpolation="bilinear",
        flip=False,
        embedding_dim=model.embedding_dim,
    )
    (tmp_path / CARD).write_text(json.dumps(card.to_dict()), encoding="utf-8")
    save_weights(tmp_path / WEIGHTS, model)
    embedder = Embedder(read_card(tmp_path), tmp_path / WEIGHTS)
    pixels = torch.randint(256, (3, *IMAGE_SIZE, 3), dtype=torch.uint8)
    embedded = torch.from_numpy(embedder.embed(pixels.numpy(), cameras(3).numpy()))
    batch = to_model_input(pixels, mean=card.mean, std=card.std, device=torch.device("cpu"))
    expected = functional.normalize(model(batch, cameras(3)).embedding)
    torch.testing.assert_close(embedded, expected, rtol=1e-4, atol=1e-5)


@every_model
def test_profile(name: str) -> None:
    model = new_model(name)
    profile = profile_model(model)
    assert model.training
    assert profile.params == sum(p.numel() for p in model.parameters())
    assert (profile.embedding_dim, profile.image_size) == (model.embedding_dim, IMAGE_SIZE)
    with torch.device("meta"):
        on_meta = new_model(name)
    assert profile_model(on_meta) == profile
    assert profile.gmac > 0
