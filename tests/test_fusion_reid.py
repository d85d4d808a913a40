"""FusionReID as a whole: equal to the formulas written out slowly, and doing no needless work."""

import math

import pytest
import torch
from torch import Tensor

from reid_models import ReidLoss, profile_model
from reid_models.fusion_plan import FEATURE_NAMES
from reid_models.fusion_reid import FusionReID
from tests.slow_branches import VIT_TINY, Vit, conv_patches, soft_split_patches
from tests.slow_fusion import slow_fusion_reid
from tests.small_fusion import CAMERAS, CLASSES, IMAGE_SIZE, count, small_model
from tests.small_models import scrambled

T2T = soft_split_patches("patch_embed")
NETWORKS = {
    "t2t_vit_t_14": Vit(blocks=14, heads=6, eps=1e-5, patches=T2T),
    "t2t_vit_t_24": Vit(blocks=24, heads=8, eps=1e-5, patches=T2T),
    "vit_small_dim768_patch16_224": Vit(
        blocks=8, heads=8, scale=768**-0.5, patches=conv_patches(16)
    ),
    "deit_tiny_patch16_224": Vit(blocks=12, heads=3, patches=conv_patches(16)),
}


def assert_written_out(
    model: FusionReID,
    *,
    cameras: list[int],
    vit: Vit = VIT_TINY,
    views: list[int] | None = None,
) -> None:
    images = torch.randn(len(cameras), 3, *IMAGE_SIZE, dtype=torch.float64)
    options = model.options
    expected = slow_fusion_reid(
        model.state_dict(),
        images,
        cameras,
        vit=vit,
        depth=options.htm_depth,
        stem=options.stem,
        mode=options.htm_mode,
        seu_sharing=options.seu_sharing,
        mfu_sharing=options.mfu_sharing,
        views=views,
        view_count=max(options.view_count, 1),
    )
    view_indices = None if views is None else torch.tensor(views)
    embedding = model(images, torch.tensor(cameras), view_indices).embedding
    assert embedding.dtype == torch.float64
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(embedding, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "options",
    [
        {"htm_depth": 2},
        {"htm_depth": 6},
        {"htm_depth": 1, "lru_kernel": 3, "stem": "torchvision"},
        {"seu_sharing": "separate"},
        {"seu_sharing": "separate", "mfu_sharing": "shared"},
        {"mfu_sharing": "shared"},
        {"htm_mode": "encode"},
        {"htm_mode": "encode", "seu_sharing": "separate"},
        {"htm_mode": "fuse"},
        {"htm_mode": "fuse_encode"},
    ],
    ids=lambda options: "-".join(str(value) for value in options.values()),
)
@torch.no_grad()
def test_embedding_equals_the_written_out_formulas(options: dict[str, object]) -> None:
    assert_written_out(scrambled(small_model(**options)).eval(), cameras=[2, -1, 0])


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_every_transformer_equals_the_written_out_formulas(name: str) -> None:
    model = scrambled(small_model(transformer=name, patch_stride=16, htm_depth=1)).eval()
    assert_written_out(model, cameras=[2, -1], vit=NETWORKS[name])


@pytest.mark.parametrize("camera_count", [CAMERAS, 0])
@torch.no_grad()
def test_views_equal_the_written_out_formulas(camera_count: int) -> None:
    model = scrambled(small_model(camera_count, htm_depth=1, view_count=2)).eval()
    cameras = [2, -1, 0, 1, -1] if camera_count else [-1] * 5
    assert_written_out(model, cameras=cameras, views=[1, 0, -1, 1, -1])
    images = torch.randn(2, 3, *IMAGE_SIZE, dtype=torch.float64)
    unknown = model(images, None, torch.tensor([-1, -1])).embedding
    torch.testing.assert_close(model(images).embedding, unknown)
    assert not torch.allclose(model(images, None, torch.tensor([1, 1])).embedding, unknown)


def test_wrong_views_are_named() -> None:
    images = torch.randn(2, 3, *IMAGE_SIZE)
    model = small_model(view_count=2).eval()
    with pytest.raises(ValueError, match=r"view indices must lie in 0\.\.1.* got 0\.\.2"):
        model(images, None, torch.tensor([0, 2]))
    with pytest.raises(ValueError, match=r"views must be int64 of shape \[2\], got torch.int32"):
        model(images, None, torch.tensor([0, 1], dtype=torch.int32))
    without = small_model().eval()
    with torch.no_grad():
        ignored = without(images, None, torch.tensor([0, 7])).embedding
        torch.testing.assert_close(ignored, without(images).embedding)


def test_logits_are_the_classifier_on_the_normalised_feature() -> None:
    model = scrambled(small_model()).train()
    output = model(torch.randn(5, 3, *IMAGE_SIZE, dtype=torch.float64))
    assert tuple(output.logits) == FEATURE_NAMES
    torch.testing.assert_close(
        torch.cat(list(output.metric_features.values()), dim=1), output.embedding
    )
    for name, feature in output.metric_features.items():
        head = model.heads[name]
        spread = (feature.var(0, unbiased=False) + 1e-5).sqrt()
        normal = (feature - feature.mean(0)) / spread * head.neck.weight + head.neck.bias
        torch.testing.assert_close(output.logits[name], normal @ head.classifier.weight.T)


@pytest.mark.parametrize("classes", [CLASSES, 751])
@torch.no_grad()
def test_six_heads_start_at_the_loss_of_guessing(classes: int) -> None:
    model = small_model(classes=classes)
    assert [term.head for term in model.loss_layout] == list(FEATURE_NAMES)
    labels = torch.tensor([0, 0, 1, 1, 3, 3])
    output = model(torch.randn(6, 3, *IMAGE_SIZE))
    loss, parts = ReidLoss(model.loss_layout)(output, labels)
    assert parts["id"].item() == pytest.approx(6 * math.log(classes), rel=0.01)
    triplets = sum(slow_soft_triplet(f, labels) for f in output.metric_features.values())
    assert parts["triplet"].item() == pytest.approx(triplets, rel=1e-3)
    assert loss.item() == pytest.approx(parts["id"].item() + triplets, rel=1e-3)


def slow_soft_triplet(features_Bd: Tensor, labels_B: Tensor) -> float:
    """Mean of log(1 + exp(farthest own - nearest other)), image by image."""
    losses = []
    for feature, label in zip(features_Bd, labels_B, strict=True):
        distances = (features_Bd - feature).square().sum(1).sqrt()
        own, other = distances[labels_B == label].max(), distances[labels_B != label].min()
        losses.append(math.log1p(math.exp(own - other)))
    return sum(losses) / len(losses)


@torch.no_grad()
def test_embed_features_picks_and_orders() -> None:
    picked = ("transformer_fused", "cnn_global")
    images = torch.randn(2, 3, *IMAGE_SIZE)
    whole = small_model().eval()(images).embedding
    model = small_model(embed_features=list(picked))
    expected = torch.cat([named(whole)[name] for name in picked], dim=1)
    assert model.embedding_dim == 2048 + 12
    torch.testing.assert_close(model.eval()(images).embedding, expected)
    assert tuple(model.train()(images).logits) == FEATURE_NAMES


def named(embedding: Tensor) -> dict[str, Tensor]:
    widths = [2048, 192, 12, 12, 12, 12]
    return dict(zip(FEATURE_NAMES, embedding.split(widths, dim=1), strict=True))


@torch.no_grad()
def test_a_branch_in_half_precision_embeds_in_float32() -> None:
    model = small_model(cnn=None).bfloat16().eval()
    embedding = model(torch.randn(2, 3, *IMAGE_SIZE).bfloat16()).embedding
    assert embedding.dtype == torch.float32
    assert embedding.isfinite().all()


CNN, TRANSFORMER = {"cnn"}, {"transformer"}
CNN_SUMMARY = CNN | {"lru.cnn", "gem.cnn"}
TRANSFORMER_SUMMARY = TRANSFORMER | {"lru.transformer", "gem.transformer"}
FIRST_HTM, LAST_HTM = (
    {f"htms.{i}.{unit}.{branch}" for unit in ("seu", "mfu") for branch in ("cnn", "transformer")}
    for i in (0, 1)
)
BOTH = CNN_SUMMARY | TRANSFORMER_SUMMARY
WATCHED = BOTH | FIRST_HTM | LAST_HTM | {"gem_global"}
NEEDED = {
    ("encode_fuse", "cnn_global"): CNN | {"gem_global"},
    ("encode_fuse", "transformer_global"): TRANSFORMER,
    ("encode_fuse", "cnn_initial"): CNN_SUMMARY,
    ("encode_fuse", "transformer_initial"): TRANSFORMER_SUMMARY,
    ("encode_fuse", "cnn_fused"): BOTH | FIRST_HTM | {"htms.1.seu.transformer", "htms.1.mfu.cnn"},
    ("encode_fuse", "transformer_fused"): BOTH
    | FIRST_HTM
    | {"htms.1.seu.cnn", "htms.1.mfu.transformer"},
    ("encode", "cnn_fused"): CNN_SUMMARY,
    ("encode", "transformer_fused"): TRANSFORMER_SUMMARY,
    ("fuse", "cnn_fused"): CNN_SUMMARY
    | {"transformer", "lru.transformer", "htms.0.mfu.cnn", "htms.1.mfu.cnn"},
    ("fuse", "transformer_fused"): TRANSFORMER_SUMMARY
    | {"cnn", "lru.cnn", "htms.0.mfu.transformer", "htms.1.mfu.transformer"},
    ("fuse_encode", "cnn_fused"): CNN_SUMMARY
    | {"transformer", "lru.transformer", "htms.0.mfu.cnn", "htms.1.mfu.cnn"},
}
"""(mode, feature) -> the parts that the feature needs whole; an encoding unit of which only the
first token is needed is not called as a whole."""


@pytest.mark.parametrize(("mode", "feature"), NEEDED)
@torch.no_grad()
def test_eval_mode_computes_only_what_the_wanted_feature_needs(mode: str, feature: str) -> None:
    settings = {"htm_mode": mode, "seu_sharing": "separate"}
    images = torch.randn(2, 3, *IMAGE_SIZE)
    whole = small_model(**settings).eval()(images).embedding
    model = small_model(**settings, embed_features=(feature,)).eval()
    called: set[str] = set()
    for name, module in model.named_modules():
        if name in WATCHED or name.startswith("heads."):
            module.register_forward_hook(lambda *_, name=name: called.add(name))
    embedding = model(images).embedding
    assert called == NEEDED[mode, feature]
    torch.testing.assert_close(embedding, named(whole)[feature], rtol=1e-4, atol=1e-5)


def test_a_single_feature_costs_no_more_than_its_branch() -> None:
    with torch.device("meta"):
        cost = {
            name: profile_model(small_model(embed_features=(name,))).gmac for name in FEATURE_NAMES
        }
        alone = {
            "cnn_global": profile_model(small_model(transformer=None)).gmac,
            "transformer_global": profile_model(small_model(cnn=None)).gmac,
        }
        whole = profile_model(small_model()).gmac
    assert {name: cost[name] for name in alone} == alone
    assert cost["cnn_global"] < cost["cnn_initial"] < cost["cnn_fused"] < whole
    assert cost["transformer_global"] < cost["transformer_initial"] < cost["transformer_fused"]


@pytest.mark.parametrize(
    ("off", "left", "dim"),
    [("transformer", "cnn_global", 2048), ("cnn", "transformer_global", 192)],
)
def test_one_branch_alone_is_that_branch_with_its_head(off: str, left: str, dim: int) -> None:
    images, cameras = torch.randn(3, 3, *IMAGE_SIZE), torch.tensor([0, 2, -1])
    both, alone = small_model(), small_model(**{off: None})
    both.load_state_dict(both.state_dict() | alone.state_dict())
    assert alone.embedding_dim == dim
    assert [term.head for term in alone.loss_layout] == [left]
    with torch.no_grad():
        feature = named(both.eval()(images, cameras).embedding)[left]
        torch.testing.assert_close(alone.eval()(images, cameras).embedding, feature)
    output = alone.train()(images, cameras)
    loss, _ = ReidLoss(alone.loss_layout)(output, torch.tensor([0, 0, 1]))
    loss.backward()
    assert {n for n, p in alone.named_parameters() if p.grad is None} == {f"heads.{left}.neck.bias"}


@torch.no_grad()
def test_side_information_can_be_left_out() -> None:
    model = small_model(side_information=0.0).eval()
    images = torch.randn(2, 3, *IMAGE_SIZE)
    assert count(small_model()) - count(model) == CAMERAS * 192
    torch.testing.assert_close(
        model(images, torch.tensor([0, 2])).embedding, model(images).embedding
    )
