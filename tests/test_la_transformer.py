"""LA-Transformer and LA-TF++ against the published maths written out slowly, with the weights of
checkpoints in the official layout.
"""

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from reid_models import ReidLoss, create_model
from reid_models.la_transformer import LATransformerOptions, LATransformerPPOptions
from tests.slow_la import (
    DIM,
    OFFICIAL_HEADS,
    ROWS,
    assert_equal,
    imported,
    official_checkpoint,
    random_images,
    slow_backbone,
    slow_head,
    slow_row_embedding,
    small_model,
)


@pytest.mark.parametrize("name", ["la_transformer", "la_transformer_pp"])
@torch.no_grad()
def test_official_checkpoint_gives_the_published_feature(tmp_path: Path, name: str) -> None:
    state = official_checkpoint(OFFICIAL_HEADS[name])
    model = imported(tmp_path, state, name).eval()
    images = random_images(2)
    rows, _ = slow_backbone(state, images)
    embedding = model(images).embedding
    assert embedding.shape == (2, model.embedding_dim) == (2, ROWS * DIM)
    assert_equal(embedding, slow_row_embedding(rows))
    assert_equal(embedding.norm(dim=1), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("name", ["la_transformer", "la_transformer_pp"])
@pytest.mark.parametrize("triplet_on", [None, "feature", "bottleneck", "logits"])
@torch.no_grad()
def test_official_checkpoint_gives_the_published_logits(
    tmp_path: Path, name: str, triplet_on: str | None
) -> None:
    state = official_checkpoint(OFFICIAL_HEADS[name])
    model = imported(tmp_path, state, name, dropout=0.0, triplet_on=triplet_on)
    images = random_images(4)
    rows, class_token = slow_backbone(state, images)
    gelts = [(class_token + 8 * rows[:, row]) / 9 for row in range(ROWS)]
    features = gelts if name == "la_transformer" else [sum(gelts) / ROWS]
    output = model(images)
    assert len(output.logits) == len(features)
    for i, (head, feature) in enumerate(zip(output.logits, features, strict=True)):
        bottleneck, logits = slow_head(state, f"classifier{i}", feature, batch_statistics=True)
        assert_equal(output.logits[head], logits)
        expected = {"bottleneck": bottleneck, "logits": logits}.get(str(triplet_on), feature)
        assert_equal(output.metric_features[head], expected)
    weights = {(term.id_weight, term.triplet_weight) for term in model.loss_layout}
    assert weights == {(1.0, 0.0 if triplet_on is None else 1.0)}


@torch.no_grad()
def test_heads_keep_the_running_statistics_of_the_checkpoint(tmp_path: Path) -> None:
    state = official_checkpoint(ROWS)
    model = imported(tmp_path, state).eval()
    feature = torch.randn(3, DIM, dtype=torch.float64)
    for i, head in enumerate(model.heads.values()):
        _, logits = slow_head(state, f"classifier{i}", feature, batch_statistics=False)
        assert_equal(head(feature), logits)


@pytest.mark.parametrize(
    ("factor", "side", "local_share"), [(8.0, "local", 8 / 9), (0.8, "global", 5 / 9)]
)
@torch.no_grad()
def test_both_lambda_conventions_and_every_embedding(
    tmp_path: Path, factor: float, side: str, local_share: float
) -> None:
    state = official_checkpoint(ROWS)
    images = random_images(2)
    rows, class_token = slow_backbone(state, images)
    gelts = local_share * rows + (1 - local_share) * class_token[:, None]
    expected = {
        ("rows", False): slow_row_embedding(rows),
        ("rows", True): slow_row_embedding(gelts),
        ("mean", False): rows.sum(1) / ROWS,
        ("mean", True): gelts.sum(1) / ROWS,
    }
    for (kind, use_cls), wanted in expected.items():
        options = {"gelt_lambda": factor, "gelt_lambda_on": side, "dropout": 0.0}
        model = imported(tmp_path, state, embed_kind=kind, embed_use_cls=use_cls, **options)
        training = model(images)
        assert model.embedding_dim == wanted.shape[1]
        assert_equal(model.eval()(images).embedding, wanted)
        assert_equal(training.embedding, wanted)
        _, logits = slow_head(state, "classifier1", gelts[:, 1], batch_statistics=True)
        assert_equal(training.logits["row_1"], logits)


@pytest.mark.parametrize("heads", ["rows", "pooled"])
@torch.no_grad()
def test_eval_mode_leaves_the_heads_alone(heads: str) -> None:
    model = small_model(heads=heads).eval()
    called: list[str] = []
    for name, head in model.heads.items():
        head.classifier.register_forward_hook(lambda *_, name=name: called.append(name))
    output = model(random_images(1).float())
    assert (called, output.logits, output.metric_features) == ([], {}, {})
    model.train()(random_images(2).float())
    assert called == [term.head for term in model.loss_layout]
    assert called == (["row_0", "row_1", "row_2", "row_3"] if heads == "rows" else ["pooled"])


@torch.no_grad()
def test_training_starts_at_the_published_losses() -> None:
    torch.manual_seed(0)
    images, labels = torch.randn(6, 3, 224, 224), torch.tensor([0, 0, 1, 1, 2, 2])
    tiny = {"image_size": (224, 224), "transformer": "vit_tiny_patch16_224"}
    rows = create_model("la_transformer", 751, **tiny)
    _, parts = ReidLoss(rows.loss_layout, label_smoothing=0.0)(rows(images), labels)
    assert parts["id"].item() == pytest.approx(14 * math.log(751), rel=0.005)
    assert parts["id"].item() == pytest.approx(92.7, abs=0.5)
    assert parts["triplet"].item() == 0
    pooled = create_model("la_transformer_pp", 62, triplet_on="logits", **tiny)
    _, parts = ReidLoss(pooled.loss_layout, margin=0.3)(pooled(images), labels)
    assert parts["id"].item() == pytest.approx(math.log(62), rel=0.01)
    assert parts["triplet"].item() == pytest.approx(0.3, abs=0.15)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"transformer": "vit_base_patch16_223"}, "the nearest name is 'vit_base_patch16_224'"),
        ({"transformer": "resnet50"}, "transformer='resnet50' is no plain vision transformer"),
        ({"gelt_lambda": -1.0}, "gelt_lambda must be finite and >= 0, got -1.0"),
        ({"gelt_lambda": math.nan}, "gelt_lambda must be finite and >= 0, got nan"),
        ({"gelt_lambda_on": "cls"}, "gelt_lambda_on must be one of local, global, got 'cls'"),
        ({"heads": "mean"}, "heads must be one of rows, pooled, got 'mean'"),
        ({"triplet_on": "rows"}, "one of feature, bottleneck, logits, None, got 'rows'"),
        ({"embed_kind": "max"}, "embed_kind must be one of rows, mean, got 'max'"),
        ({"bottleneck_dim": 0}, "bottleneck_dim must be at least 1, got 0"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1.0"),
        ({"drop_path": -0.1}, r"drop_path must lie in \[0, 1\), got -0.1"),
        ({"patch_stride": 17}, r"lie in 1\.\.16 .* got patch_stride=17"),
    ],
)
def test_wrong_options_are_named(options: dict[str, object], message: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        small_model(**options)


def test_options_default_to_the_published_models() -> None:
    rows = {
        "transformer": "vit_base_patch16_224.orig_in21k_ft_in1k",
        "transformer_weights": None,
        "patch_stride": 16,
        "drop_path": 0.0,
        "side_information": 0.0,
        "gelt_lambda": 8.0,
        "gelt_lambda_on": "local",
        "heads": "rows",
        "bottleneck_dim": 256,
        "dropout": 0.5,
        "triplet_on": None,
        "embed_kind": "rows",
        "embed_use_cls": False,
    }
    pooled = {
        "transformer": "vit_base_patch16_224.augreg_in21k_ft_in1k",
        "heads": "pooled",
        "triplet_on": "feature",
    }
    assert dataclasses.asdict(LATransformerOptions()) == rows
    assert dataclasses.asdict(LATransformerPPOptions()) == rows | pooled
