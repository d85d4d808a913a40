"""LA-Transformer written out slowly over a checkpoint in the official layout.

Shapes: B batch, D token dim, h rows of patches, C identities.
"""

import math
from pathlib import Path

import torch
from torch import Tensor

from reid_models import create_model
from reid_models.la_transformer import LATransformer
from reid_models.official import load_official
from tests.slow_branches import Vit, conv_patches, part, slow_vit

Weights = dict[str, Tensor]

IMAGE_SIZE = (64, 48)
ROWS, COLUMNS = 4, 3
CLASSES = 5
DIM, DEPTH = 192, 12
"""Of ViT-tiny."""

OFFICIAL_HEADS = {"la_transformer": ROWS, "la_transformer_pp": 1}


def official_checkpoint(heads: int, *, cells: int = ROWS * COLUMNS) -> Weights:
    """Every tensor of an official state dict, with the backbone of ViT-tiny."""
    generator = torch.Generator().manual_seed(11)
    state: Weights = {}

    def draw(key: str, *shape: int, around: float = 0.0) -> None:
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        state[key] = around + 0.1 * noise

    def linear(name: str, *shape: int) -> None:
        draw(f"{name}.weight", *shape)
        draw(f"{name}.bias", shape[0])

    def norm(name: str, width: int) -> None:
        draw(f"{name}.weight", width, around=1.0)
        draw(f"{name}.bias", width)

    draw("model.cls_token", 1, 1, DIM)
    draw("model.pos_embed", 1, 1 + cells, DIM)
    state["cls_token"], state["pos_embed"] = state["model.cls_token"], state["model.pos_embed"]
    linear("model.patch_embed.proj", DIM, 3, 16, 16)
    for block in range(DEPTH):
        norm(f"model.blocks.{block}.norm1", DIM)
        linear(f"model.blocks.{block}.attn.qkv", 3 * DIM, DIM)
        linear(f"model.blocks.{block}.attn.proj", DIM, DIM)
        norm(f"model.blocks.{block}.norm2", DIM)
        linear(f"model.blocks.{block}.mlp.fc1", 4 * DIM, DIM)
        linear(f"model.blocks.{block}.mlp.fc2", DIM, 4 * DIM)
    norm("model.norm", DIM)
    linear("model.head", 751, DIM)
    for head in range(heads):
        linear(f"classifier{head}.add_block.0", 256, DIM)
        norm(f"classifier{head}.add_block.1", 256)
        draw(f"classifier{head}.add_block.1.running_mean", 256)
        draw(f"classifier{head}.add_block.1.running_var", 256, around=1.0)
        state[f"classifier{head}.add_block.1.num_batches_tracked"] = torch.tensor(381)
        linear(f"classifier{head}.classifier.0", CLASSES, 256)
    return state


def slow_backbone(w: Weights, images: Tensor) -> tuple[Tensor, Tensor]:
    """Pooled rows [B, h, D] and class token [B, D]."""
    trunk = {**part(w, "model"), "cls_token": w["cls_token"], "pos_embed": w["pos_embed"]}
    no_offset = torch.zeros(len(images), DIM, dtype=images.dtype)
    vit = Vit(blocks=DEPTH, heads=3, patches=conv_patches(16))
    class_token, patches = slow_vit(trunk, images, no_offset, vit)
    tokens = patches.flatten(2).transpose(1, 2)
    rows = [tokens[:, r * COLUMNS : (r + 1) * COLUMNS].sum(1) / COLUMNS for r in range(ROWS)]
    return torch.stack(rows, dim=1), class_token


def slow_row_embedding(rows: Tensor) -> Tensor:
    embeddings = []
    for image in rows:
        parts = [row / (math.sqrt(row.square().sum()) * math.sqrt(len(image))) for row in image]
        embeddings.append(torch.cat(parts))
    return torch.stack(embeddings)


def slow_head(
    w: Weights, name: str, feature: Tensor, *, batch_statistics: bool
) -> tuple[Tensor, Tensor]:
    """The classifier's input and the logits, without dropout."""
    w = part(w, name)
    reduced = feature @ w["add_block.0.weight"].T + w["add_block.0.bias"]
    mean, var = reduced.mean(0), reduced.var(0, unbiased=False)
    if not batch_statistics:
        mean, var = w["add_block.1.running_mean"], w["add_block.1.running_var"]
    normal = (reduced - mean) / (var + 1e-5).sqrt()
    bottleneck = normal * w["add_block.1.weight"] + w["add_block.1.bias"]
    return bottleneck, bottleneck @ w["classifier.0.weight"].T + w["classifier.0.bias"]


def small_model(name: str = "la_transformer", **options: object) -> LATransformer:
    torch.manual_seed(0)
    settings = {"transformer": "vit_tiny_patch16_224", **options}
    model = create_model(name, CLASSES, image_size=IMAGE_SIZE, **settings)
    assert isinstance(model, LATransformer)
    return model


def imported(
    tmp_path: Path, state: Weights, name: str = "la_transformer", **options: object
) -> LATransformer:
    """A small model in float64 that was filled from an official file of these tensors."""
    file = tmp_path / "official.pth"
    torch.save(state, file)
    model = small_model(name, **options).double()
    assert load_official(model, file) == ()
    return model


def random_images(batch: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(batch, 3, *IMAGE_SIZE, generator=generator, dtype=torch.float64)


def assert_equal(actual: Tensor, expected: Tensor) -> None:
    assert actual.dtype == torch.float64
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
