"""LEViT against its formulas written out slowly, its training, and its published checkpoints."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from pipelines.engine import freeze
from reid_models import ReidLoss
from reid_models.levit import HEAD_NAMES, LEViTClassifier
from reid_models.levit_import import load_official, official_state_dict
from reid_models.levit_units import LEViTBlock
from tests.slow_levit import (
    CLASSES,
    SIZES,
    SlowLEViT,
    classifier_shapes,
    random_state,
    reid_shapes,
    small_model,
)


def image_batch(batch: int, size: tuple[int, int] = (64, 32)) -> Tensor:
    return torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(1)).double()


def assert_equal(actual: Tensor, expected: Tensor) -> None:
    assert actual.dtype == torch.float64
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("size", "ratio", "window", "image_size"),
    [
        ("levit_s", 1, 2, (64, 32)),
        ("levit_s", 1, 8, (256, 128)),
        ("levit_s", 2, 7, (112, 112)),
        ("levit_l", 1, 3, (96, 48)),
    ],
)
@torch.no_grad()
def test_published_weights_give_the_embedding_of_the_written_out_formulas(
    tmp_path: Path, size: str, ratio: int, window: int, image_size: tuple[int, int]
) -> None:
    state = random_state(reid_shapes(size, ratio))
    torch.save(state, tmp_path / "ema.pth")
    model = small_model(size, image_size=image_size, window=window, mlp_ratio=ratio)
    assert load_official(model, tmp_path / "ema.pth") == ()
    images = image_batch(2, image_size)
    features, _ = SlowLEViT(state, window).reid(images)
    assert_equal(model.double().eval()(images).embedding, torch.cat(features, dim=1))


@torch.no_grad()
def test_training_output_equals_the_written_out_formulas(tmp_path: Path) -> None:
    state = random_state(reid_shapes("levit_s"))
    torch.save(state, tmp_path / "ema.pth")
    model = small_model(drop_path=0.0)
    load_official(model, tmp_path / "ema.pth")
    images = image_batch(4)
    features, logits = SlowLEViT(state, 2, training=True).reid(images)
    output = model.double().train()(images)
    assert tuple(output.logits) == tuple(output.metric_features) == HEAD_NAMES
    assert_equal(output.embedding, torch.cat(features, dim=1))
    for i, name in enumerate(HEAD_NAMES):
        assert_equal(output.metric_features[name], features[i])
        assert_equal(output.logits[name], logits[i])


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_published_classifier_round_trip(tmp_path: Path, size: str) -> None:
    state = random_state(classifier_shapes(size))
    file = tmp_path / "imagenet.pth"
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 300}, file)
    model = LEViTClassifier(SIZES[size], image_size=(96, 64), window=2)
    load_official(model, file)
    assert model.backbone.grid == (3, 2)
    images = image_batch(2, (96, 64))
    own = official_state_dict(model)
    assert own.keys() == state.keys()
    assert all(torch.equal(own[key], value) for key, value in state.items())
    assert_equal(model.double().eval()(images), SlowLEViT(state, 2).classifier(images))


def slow_triplet(features: Tensor, labels: Tensor) -> Tensor:
    terms = []
    for anchor, label in zip(features, labels, strict=True):
        distances = (features - anchor).norm(dim=1)
        hardest = distances[labels == label].max() - distances[labels != label].min()
        terms.append(torch.log1p(hardest.exp()))
    return torch.stack(terms).mean()


@torch.no_grad()
def test_loss_at_the_start_is_the_mean_of_five_guesses_and_two_triplets() -> None:
    model = small_model()
    terms = {term.head: (term.id_weight, term.triplet_weight) for term in model.loss_layout}
    assert terms == {
        "average_1": (1 / 7, 1 / 7),
        "average_2": (1 / 7, 1 / 7),
        "max_1": (1 / 7, 0),
        "max_upper_2": (1 / 7, 0),
        "max_lower_2": (1 / 7, 0),
    }
    labels = torch.tensor([0, 0, 1, 1, 3, 3])
    output = model(image_batch(6).float())
    loss = ReidLoss(model.loss_layout, label_smoothing=0.0, normalize_triplet=True)
    _, parts = loss(output, labels)
    assert parts["id"].item() == pytest.approx(5 / 7 * math.log(CLASSES), rel=0.01)
    features = [normalize(output.metric_features[f"average_{i}"]) for i in (1, 2)]
    triplets = sum(slow_triplet(feature, labels).item() for feature in features)
    assert parts["triplet"].item() == pytest.approx(triplets / 7, rel=1e-4)


@pytest.mark.parametrize("parts", [("stem",), ("stem", "stage1"), ("stage2",)])
def test_frozen_parts_keep_their_parameters_but_follow_the_statistics(
    parts: tuple[str, ...],
) -> None:
    model = small_model()
    necks = {f"heads.{name}.neck.bias" for name in HEAD_NAMES if name.startswith("max")}
    freeze(model, parts)
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    units = tuple(f"backbone.{part}." for part in parts)
    expected = {n for n, _ in model.named_parameters() if n.startswith(units)}
    assert frozen - necks == expected != set()
    assert necks < frozen
    output = model(image_batch(4).float())
    loss, _ = ReidLoss(model.loss_layout)(output, torch.tensor([0, 0, 1, 1]))
    loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    for name, buffer in model.backbone.named_buffers():
        assert not name.endswith("running_mean") or buffer.any(), name


@torch.no_grad()
def test_a_sample_loses_either_branch_by_itself_and_keeps_the_other_doubled() -> None:
    torch.manual_seed(0)
    block = LEViTBlock(8, 8, heads=1, window=2, mlp_ratio=1, stride=1, drop_path=0.5).eval()
    block.drop_path.train()
    images = torch.randn(40, 8, 4, 4)
    outcomes = {}
    for attention in (0, 2):
        x = images + attention * block.attention(images)
        for mlp in (0, 2):
            outcomes[attention, mlp] = x + mlp * block.mlp(x)
    found = [
        [which for which, x in outcomes.items() if torch.allclose(x[i], sample, atol=1e-5)]
        for i, sample in enumerate(block(images))
    ]
    assert [len(which) for which in found] == [1] * 40
    assert {which for (which,) in found} == outcomes.keys()


@torch.no_grad()
def test_eval_mode_leaves_the_classifiers_alone() -> None:
    model = small_model().eval()
    called: list[str] = []
    for name, head in model.heads.items():
        head.classifier.register_forward_hook(lambda *_, name=name: called.append(name))
    model(image_batch(1).float())
    assert called == []
    model.train()(image_batch(2).float())
    assert tuple(called) == HEAD_NAMES


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_finite_on_blank_images_and_small_queries(dtype: torch.dtype) -> None:
    model = small_model()
    with torch.no_grad():  # the square of what this leaves is 0 in float16
        model.backbone.stage1[1].attention.qkv.bn.weight.mul_(1e-4)
    images = image_batch(4).float()
    images[:2] = 0
    with torch.autocast("cpu", dtype=dtype):
        output = model(images)
        loss, _ = ReidLoss(model.loss_layout)(output, torch.tensor([0, 0, 1, 1]))
    assert {x.dtype for x in (output.embedding, *output.metric_features.values())} == {
        torch.float32
    }
    assert output.embedding.isfinite().all()
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_backbone_weights_fill_both_branches(tmp_path: Path) -> None:
    state = random_state(classifier_shapes("levit_s"))
    file = tmp_path / "imagenet.pth"
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, file)
    model = small_model(backbone_weights=str(file))
    own = official_state_dict(model)
    for name, value in state.items():
        unit, _, rest = name.partition(".")
        targets = {
            "stage1": [f"layer1.{rest}"],
            "stage2": [f"layer2.{rest}"],
            "stage3": [f"branch_1.{rest}", f"branch_2.{rest}"],
            "head": [],
        }.get(unit, [name])
        assert all(torch.equal(own[target], value) for target in targets), name
    with pytest.raises(
        ValueError, match=r"mlp\.proj_in\.0\.weight \[96, 32, 1, 1\] instead of \[192,"
    ):
        small_model("levit_l", backbone_weights=str(file))
    with pytest.raises(ValueError, match="timm has no weights .* give backbone_weights=FILE"):
        small_model(pretrained=True)


def test_misfits_of_a_checkpoint_are_listed_unless_allowed(tmp_path: Path) -> None:
    file = tmp_path / "ema.pth"
    state = random_state(reid_shapes("levit_s"))
    wrong = dict(state)
    del wrong["layer1.layers.2.k.0.weight"]
    wrong["layer4.0.weight"] = torch.ones(3)
    wrong["bn_list.2.weight"] = torch.ones(8)
    torch.save(wrong, file)
    model = small_model()
    before = official_state_dict(model)
    before = {key: value.clone() for key, value in before.items()}
    with pytest.raises(
        ValueError,
        match=r"1 missing \(layer1\.layers\.2\.k\.0\.weight\); 1 unexpected \(layer4\.0\.weight\); "
        r"1 of another shape \(bn_list\.2\.weight \[8\] instead of \[384\]\)",
    ):
        load_official(model, file)
    assert all(torch.equal(v, before[k]) for k, v in official_state_dict(model).items())

    allowed = ["layer1.layers.2.k.", "layer4", "bn_list.2"]
    let_off = load_official(model, file, allow=allowed)
    assert let_off == ("bn_list.2.weight", "layer1.layers.2.k.0.weight", "layer4.0.weight")
    for key, value in official_state_dict(model).items():
        assert torch.equal(value, before[key] if key in let_off else state[key]), key


def test_checkpoint_of_other_identities(tmp_path: Path) -> None:
    file = tmp_path / "ema.pth"
    state = random_state(reid_shapes("levit_s"))
    for i in range(5):
        state[f"class_list.{i}.weight"] = torch.ones(751, 384)
    torch.save(state, file)
    model = small_model()
    with pytest.raises(ValueError, match=r"5 of another shape \(class_list\.0\.weight"):
        load_official(model, file)
    assert load_official(model, file, allow=("class_list.",)) == tuple(
        f"class_list.{i}.weight" for i in range(5)
    )
    assert torch.equal(model.heads["max_lower_2"].neck.weight, state["bn_list.4.weight"])
    assert model.heads["max_lower_2"].classifier.weight.abs().max() < 0.1
