"""FusionReID against the paper's formulas written out slowly, and against its published sizes.

Shapes: B batch, C channels of a branch, D fusion dim, H attention heads, h w map rows and columns,
N tokens.
"""

import dataclasses
import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import batch_norm, conv2d, gelu, layer_norm, max_pool2d, prelu, relu

from reid_models import ReidLoss, create_model, profile_model
from reid_models.fusion_reid import FEATURE_NAMES, FusionReID, FusionReIDOptions
from reid_models.model import ReidModel

Weights = dict[str, Tensor]

IMAGE_SIZE = (64, 32)
PATCH_STRIDE = 12
HEADS = 3
CLASSES = 4
CAMERAS = 3
CNN_BLOCKS = (2, 2, 2, 2)
"""Bottlenecks a stage of ResNet-26."""


def part(w: Weights, prefix: str) -> Weights:
    return {k.removeprefix(f"{prefix}."): v for k, v in w.items() if k.startswith(f"{prefix}.")}


def slow_batch_norm(w: Weights, x: Tensor) -> Tensor:
    return batch_norm(x, w["running_mean"], w["running_var"], w["weight"], w["bias"])


def slow_gem(w: Weights, map_BChw: Tensor) -> Tensor:
    powered = torch.maximum(map_BChw, torch.tensor(1e-6)) ** w["p"]
    rows, columns = map_BChw.shape[2:]
    return (powered.sum(3).sum(2) / (rows * columns)) ** (1 / w["p"])


def slow_bottleneck(w: Weights, x: Tensor, stride: int) -> Tensor:
    y = relu(slow_batch_norm(part(w, "bn1"), conv2d(x, w["conv1.weight"])))
    y = conv2d(y, w["conv2.weight"], stride=stride, padding=1)
    y = relu(slow_batch_norm(part(w, "bn2"), y))
    y = slow_batch_norm(part(w, "bn3"), conv2d(y, w["conv3.weight"]))
    if "downsample.0.weight" in w:
        x = conv2d(x, w["downsample.0.weight"], stride=stride)
        x = slow_batch_norm(part(w, "downsample.1"), x)
    return relu(x + y)


def slow_resnet(w: Weights, images: Tensor, stem: str) -> Tensor:
    """The 7x7 stem, four stages of bottlenecks, the last one with stride 1."""
    x = conv2d(images, w["conv1.weight"], stride=2, padding=3)
    x = slow_batch_norm(part(w, "bn1"), x)
    x = max_pool2d(x, 2, 2) if stem == "reid" else max_pool2d(relu(x), 3, 2, 1)
    for stage, (blocks, stride) in enumerate(zip(CNN_BLOCKS, (1, 2, 2, 1), strict=True), start=1):
        for block in range(blocks):
            block_weights = part(w, f"layer{stage}.{block}")
            x = slow_bottleneck(block_weights, x, stride if block == 0 else 1)
    return x


def norm(w: Weights, x: Tensor, eps: float) -> Tensor:
    return layer_norm(x, x.shape[-1:], w["weight"], w["bias"], eps)


def linear(w: Weights, x: Tensor) -> Tensor:
    return x @ w["weight"].T + w.get("bias", torch.zeros((), dtype=x.dtype))


def slow_attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """[B, Q, D], [B, N, D], [B, N, D] -> [B, Q, D], one head after the other."""
    width = query.shape[-1] // heads
    outputs = []
    for head in range(heads):
        part_of_dim = slice(head * width, (head + 1) * width)
        scores = query[..., part_of_dim] @ key[..., part_of_dim].transpose(1, 2) * width**-0.5
        outputs.append(scores.softmax(dim=-1) @ value[..., part_of_dim])
    return torch.cat(outputs, dim=-1)


def slow_block(w: Weights, x: Tensor, heads: int, eps: float) -> Tensor:
    """Pre-norm transformer block."""
    query, key, value = linear(part(w, "attn.qkv"), norm(part(w, "norm1"), x, eps)).chunk(3, dim=-1)
    x = x + linear(part(w, "attn.proj"), slow_attention(query, key, value, heads))
    hidden = gelu(linear(part(w, "mlp.fc1"), norm(part(w, "norm2"), x, eps)))
    return x + linear(part(w, "mlp.fc2"), hidden)


def slow_vit(w: Weights, images: Tensor, cameras: list[int]) -> tuple[Tensor, Tensor]:
    """Class token [B, C] and patch map [B, C, h, w] of ViT-tiny (12 blocks, 3 heads)."""
    trunk = part(w, "trunk")
    patches = conv2d(
        images, trunk["patch_embed.proj.weight"], trunk["patch_embed.proj.bias"], PATCH_STRIDE
    )
    batch, dim, rows, columns = patches.shape
    tokens = torch.zeros(batch, 1 + rows * columns, dim, dtype=images.dtype)
    table = w["side_information.table_KC"]
    for b in range(batch):
        camera = table.mean(0) if cameras[b] == -1 else table[cameras[b]]
        tokens[b, 0] = trunk["cls_token"][0, 0]
        for row in range(rows):
            for column in range(columns):
                tokens[b, 1 + row * columns + column] = patches[b, :, row, column]
        tokens[b] += trunk["pos_embed"][0] + 3.0 * camera
    for block in range(12):
        tokens = slow_block(part(trunk, f"blocks.{block}"), tokens, heads=3, eps=1e-6)
    tokens = norm(part(trunk, "norm"), tokens, eps=1e-6)
    patch_map = tokens[:, 1:].reshape(batch, rows, columns, dim).permute(0, 3, 1, 2)
    return tokens[:, 0], patch_map


def slow_lru(w: Weights, x: Tensor) -> Tensor:
    kernel = w["0.weight"].shape[-1]
    x = conv2d(x, w["0.weight"], w["0.bias"], padding=kernel // 2, groups=x.shape[1])
    x = prelu(slow_batch_norm(part(w, "1"), x), w["2.weight"])
    x = conv2d(x, w["3.weight"], w["3.bias"])
    return prelu(slow_batch_norm(part(w, "4"), x), w["5.weight"])


def slow_seu(w: Weights, summary: Tensor, tokens: Tensor) -> Tensor:
    x = slow_block(part(w, "block"), torch.cat([summary[:, None], tokens], 1), HEADS, eps=1e-5)
    return norm(part(w, "norm"), x, eps=1e-5)


def slow_mfu(w: Weights, summary: Tensor, others: Tensor) -> Tensor:
    query = linear(part(w, "query"), norm(part(w, "norm_query"), summary[:, None], 1e-5))
    key = linear(part(w, "key"), norm(part(w, "norm_key"), others, 1e-5))
    value = linear(part(w, "value"), others)
    y = summary[:, None] + linear(part(w, "proj"), slow_attention(query, key, value, HEADS))
    hidden = gelu(linear(part(w, "mlp.fc1"), norm(part(w, "norm_mlp"), y, 1e-5)))
    return (y + linear(part(w, "mlp.fc2"), hidden))[:, 0]


def slow_fusion_reid(
    w: Weights, images: Tensor, cameras: list[int], *, depth: int, stem: str, seus: tuple[str, str]
) -> Tensor:
    cnn_map = slow_resnet(part(w, "cnn.trunk"), images, stem)
    transformer_global, transformer_map = slow_vit(part(w, "transformer"), images, cameras)
    cnn_refined = slow_lru(part(w, "lru_cnn"), cnn_map)
    transformer_refined = slow_lru(part(w, "lru_transformer"), transformer_map)
    cnn_initial = cnn_summary = slow_gem(part(w, "gem_cnn"), cnn_refined)
    transformer_initial = transformer_summary = slow_gem(
        part(w, "gem_transformer"), transformer_refined
    )
    cnn_tokens = cnn_refined.flatten(2).transpose(1, 2)
    transformer_tokens = transformer_refined.flatten(2).transpose(1, 2)
    for layer in range(depth):
        htm = part(w, f"htms.{layer}")
        cnn = slow_seu(part(htm, f"seu.{seus[0]}"), cnn_summary, cnn_tokens)
        transformer = slow_seu(part(htm, f"seu.{seus[1]}"), transformer_summary, transformer_tokens)
        cnn_summary = slow_mfu(part(htm, "mfu_cnn"), cnn[:, 0], transformer[:, 1:])
        transformer_summary = slow_mfu(part(htm, "mfu_transformer"), transformer[:, 0], cnn[:, 1:])
    return torch.cat(
        [
            slow_gem(part(w, "gem_global"), cnn_map),
            transformer_global,
            cnn_initial,
            transformer_initial,
            cnn_summary,
            transformer_summary,
        ],
        dim=1,
    )


def small_model(**options: object) -> ReidModel:
    torch.manual_seed(0)
    settings = {
        "cnn": "resnet26",
        "transformer": "vit_tiny_patch16_224",
        "patch_stride": PATCH_STRIDE,
        "fusion_dim": 12,
        "fusion_heads": HEADS,
        **options,
    }
    return create_model(
        "fusion_reid", CLASSES, image_size=IMAGE_SIZE, camera_count=CAMERAS, **settings
    )


def scrambled(model: ReidModel) -> ReidModel:
    """In float64, with no weight left at a value that hides it (ones, zeros, equal slopes)."""
    model = model.double()
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if key.endswith("running_var"):
                value.uniform_(0.5, 1.5)
            elif value.is_floating_point():
                value.add_(0.1 * torch.rand_like(value))
    return model


@pytest.mark.parametrize(
    ("options", "seus"),
    [
        ({"htm_depth": 2}, ("shared", "shared")),
        ({"htm_depth": 1, "seu_sharing": "separate"}, ("cnn", "transformer")),
        ({"htm_depth": 1, "lru_kernel": 3, "stem": "torchvision"}, ("shared", "shared")),
    ],
)
@torch.no_grad()
def test_embedding_equals_the_written_out_formulas(
    options: dict[str, object], seus: tuple[str, str]
) -> None:
    model = scrambled(small_model(**options)).eval()
    images = torch.randn(3, 3, *IMAGE_SIZE, dtype=torch.float64)
    cameras = [2, -1, 0]
    expected = slow_fusion_reid(
        model.state_dict(),
        images,
        cameras,
        depth=model.options.htm_depth,
        stem=model.options.stem,
        seus=seus,
    )
    embedding = model(images, torch.tensor(cameras)).embedding
    assert embedding.dtype == torch.float64
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(embedding, expected, rtol=1e-9, atol=1e-9)


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


@torch.no_grad()
def test_six_heads_start_at_the_loss_of_guessing() -> None:
    model = small_model()
    assert [term.head for term in model.loss_layout] == list(FEATURE_NAMES)
    _, parts = ReidLoss(model.loss_layout)(
        model(torch.randn(6, 3, *IMAGE_SIZE)), torch.tensor([0, 0, 1, 1, 3, 3])
    )
    assert parts["id"].item() == pytest.approx(6 * math.log(CLASSES), rel=0.01)
    assert parts["triplet"].item() > 0


@torch.no_grad()
def test_eval_mode_leaves_the_heads_alone() -> None:
    model = small_model().eval()
    called: list[str] = []
    for name, head in model.heads.items():
        head.register_forward_hook(lambda *_, name=name: called.append(name))
    model(torch.randn(1, 3, *IMAGE_SIZE))
    assert called == []
    model.train()(torch.randn(2, 3, *IMAGE_SIZE))
    assert tuple(called) == FEATURE_NAMES


@torch.no_grad()
def test_embed_features_picks_and_orders() -> None:
    picked = ("transformer_fused", "cnn_global")
    images = torch.randn(2, 3, *IMAGE_SIZE)
    whole = small_model().eval()(images).embedding
    model = small_model(embed_features=list(picked)).eval()
    parts = dict(zip(FEATURE_NAMES, whole.split([2048, 192, 12, 12, 12, 12], dim=1), strict=True))
    assert model.embedding_dim == 2048 + 12
    torch.testing.assert_close(
        model(images).embedding, torch.cat([parts[name] for name in picked], dim=1)
    )


@torch.no_grad()
def test_side_information_can_be_left_out() -> None:
    model = small_model(side_information=0.0).eval()
    images = torch.randn(2, 3, *IMAGE_SIZE)
    assert count(small_model()) - count(model) == CAMERAS * 192
    torch.testing.assert_close(
        model(images, torch.tensor([0, 2])).embedding, model(images).embedding
    )


def published(**options: object) -> FusionReID:
    with torch.device("meta"):
        model = create_model("fusion_reid", 751, image_size=(256, 128), camera_count=6, **options)
    assert isinstance(model, FusionReID)
    return model


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


UNUSED_CLASSIFIER = 769_000
"""The published code keeps the ViT's 768 -> 1000 layer, which nothing uses."""


def test_published_size() -> None:
    model = published()
    profile = profile_model(model)
    assert profile.params == 159_225_903 - UNUSED_CLASSIFIER
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
        "lru_cnn": count(model.lru_cnn),
        "lru_transformer": count(model.lru_transformer),
        "seu": count(model.htms[0].seu),
        "mfu": count(model.htms[0].mfu_cnn),
        "htms": count(model.htms),
        "heads": {name: count(model.heads[name]) for name in FEATURE_NAMES},
        "gems": [count(g) for g in (model.gem_global, model.gem_cnn, model.gem_transformer)],
    } == {
        "cnn": 23_508_032,
        "transformer": 86_583_016 - UNUSED_CLASSIFIER,
        "side information": 4_608,
        "position": 162_048,
        "lru_cnn": 1_583_362,
        "lru_transformer": 595_202,
        "seu": 7_087_104,
        "mfu": 7_087_104,
        "htms": 42_522_624,
        "heads": {**dict.fromkeys(FEATURE_NAMES, head), "cnn_global": 4_096 + 1_538_048},
        "gems": [1, 1, 1],
    }


def test_size_with_separate_encoding_units() -> None:
    model = published(seu_sharing="separate")
    assert count(model) == 173_400_111 - UNUSED_CLASSIFIER
    assert count(model.htms) == 56_696_832


@pytest.mark.parametrize(
    ("options", "dim"),
    [({"fusion_dim": 384}, 4352), ({"fusion_dim": 1536}, 8960), ({"htm_depth": 6}, 5888)],
)
def test_published_embedding_dims(options: dict[str, object], dim: int) -> None:
    assert published(**options).embedding_dim == dim


@pytest.mark.parametrize(
    ("image_size", "stride", "grid"),
    [((256, 128), 16, (16, 8)), ((384, 128), 12, (31, 10)), ((384, 128), 16, (24, 8))],
)
def test_patch_grids(image_size: tuple[int, int], stride: int, grid: tuple[int, int]) -> None:
    with torch.device("meta"):
        model = create_model("fusion_reid", 2, image_size=image_size, patch_stride=stride)
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
    assert model.gem_cnn.p.item() == 3
    assert model.lru_cnn[2].weight.tolist() == [0.25]
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in trunk.blocks]
    assert rates == pytest.approx([0.1 * i / 11 for i in range(12)])


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
        ({"cnn": "resnet50.nowhere"}, "timm has no such weights; it has resnet50.a1_in1k"),
        ({"transformer": "resnet50"}, "transformer='resnet50' is no plain vision transformer"),
        ({"transformer": "vit_base_patch16_siglip_224"}, "is no plain vision transformer"),
        ({"cnn": "vit_tiny_patch16_224"}, "cannot keep the resolution of its last stage"),
        ({"cnn": "vit_tiny_patch16_224", "last_stride": 2}, r"cannot take images of \(64, 32\)"),
        ({"cnn": "densenet121"}, "'densenet121' cannot keep .* use last_stride=2"),
        ({"patch_stride": 17}, r"lie in 1\.\.16 .* got patch_stride=17"),
        ({"patch_stride": 0}, "patch_stride must be at least 1, got 0"),
        ({"fusion_dim": 13}, "multiple of fusion_heads=3, got 13"),
        ({"htm_depth": 0}, "htm_depth must be at least 1, got 0"),
        ({"lru_kernel": 2}, "lru_kernel must be odd and positive, got 2"),
        ({"last_stride": 3}, "last_stride must be 1 or 2, got 3"),
        ({"drop_path": 1.0}, r"drop_path must lie in \[0, 1\), got 1.0"),
        ({"stem": "deep"}, "stem must be one of reid, torchvision, got 'deep'"),
        ({"seu_sharing": "none"}, "seu_sharing must be one of shared, separate, got 'none'"),
        ({"embed_features": ("cnn",)}, "distinct names out of cnn_global"),
        ({"embed_features": ()}, "distinct names out of cnn_global"),
    ],
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
        "fusion_dim": 768,
        "fusion_heads": 12,
        "htm_depth": 2,
        "seu_sharing": "shared",
        "lru_kernel": 1,
        "embed_features": "all",
    }
