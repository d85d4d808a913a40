"""T2T-ViT against its formulas written out slowly, at any image size, and its published weights."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from reid_models import ReidLoss
from reid_models.fusion_reid import FusionReID
from reid_models.t2t import TokensToTokens, build_t2t_vit, sinusoid_table
from reid_models.vit_branch import VitBranch
from tests.slow_branches import Vit, slow_vit, soft_split_patches
from tests.small_fusion import small_model
from tests.test_weights import slow_bilinear

DIM = 384
SLOW = Vit(blocks=14, heads=6, eps=1e-5, patches=soft_split_patches("tokens_to_token"))


def branch(image_size: tuple[int, int], weights: Path | None = None) -> VitBranch:
    torch.manual_seed(0)
    settings = {"patch_stride": 16, "drop_path": 0.1, "camera_count": 0, "side_information": 0.0}
    built = VitBranch("t2t_vit_t_14", image_size, **settings)
    if weights is not None:
        built.load(str(weights))
    return built.double().eval()


@pytest.mark.parametrize(
    ("image_size", "grid"),
    [((256, 128), (16, 8)), ((224, 224), (14, 14)), ((384, 128), (24, 8)), ((70, 45), (5, 3))],
)
def test_grid_at_any_image_size(image_size: tuple[int, int], grid: tuple[int, int]) -> None:
    with torch.device("meta"):
        trunk = build_t2t_vit(image_size, patch_stride=16, drop_path=0.0, dim=512, depth=2, heads=8)
        patches = trunk.patch_embed(torch.zeros(2, 3, *image_size))
    assert trunk.patch_embed.grid_size == grid
    assert patches.shape == (2, grid[0] * grid[1], 512)
    assert trunk.pos_embed.shape == (1, 1 + grid[0] * grid[1], 512)


@pytest.mark.parametrize("image_size", [(64, 32), (70, 45)])
@torch.no_grad()
def test_soft_splits_equal_the_written_out_formulas(image_size: tuple[int, int]) -> None:
    torch.manual_seed(1)
    module = TokensToTokens(image_size, 3, 24).double()
    for parameter in module.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    images = torch.randn(2, 3, *image_size, dtype=torch.float64)
    state = {f"t2t.{name}": value for name, value in module.state_dict().items()}
    expected = soft_split_patches("t2t")(state, images)
    assert expected.shape[2:] == module.grid_size
    torch.testing.assert_close(
        module(images), expected.flatten(2).transpose(1, 2), rtol=1e-10, atol=1e-10
    )


def test_sinusoid_table_equals_its_formula() -> None:
    table = sinusoid_table(7, 10)
    assert table.shape == (1, 7, 10)
    for position in range(7):
        for column in range(10):
            angle = position / 10000 ** (2 * (column // 2) / 10)
            expected = math.cos(angle) if column % 2 else math.sin(angle)
            assert table[0, position, column].item() == pytest.approx(expected, abs=1e-6)


def test_the_position_table_is_fixed_and_all_else_learns() -> None:
    model = small_model(cnn=None, transformer="t2t_vit_t_14", patch_stride=16)
    trunk = model.transformer.trunk
    torch.testing.assert_close(trunk.pos_embed.detach(), sinusoid_table(1 + 4 * 2, DIM))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(torch.randn(4, 3, 64, 32), torch.tensor([0, 1, 2, -1]))
        loss, _ = ReidLoss(model.loss_layout)(output, torch.tensor([0, 0, 1, 1]))
    loss.backward()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert [n for n, p in trained.items() if p.grad is None or not p.grad.isfinite().all()] == []
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == {
        "transformer.trunk.pos_embed",
        "heads.transformer_global.neck.bias",
    }


def published_weights(cells: int) -> dict[str, Tensor]:
    """A checkpoint with the names and shapes of T2T-ViT's code, classifier included."""
    generator = torch.Generator().manual_seed(5)
    shapes = {
        "cls_token": (1, 1, DIM),
        "pos_embed": (1, 1 + cells, DIM),
        "norm.weight": (DIM,),
        "norm.bias": (DIM,),
        "head.weight": (1000, DIM),
        "head.bias": (1000,),
        "tokens_to_token.project.weight": (DIM, 576),
        "tokens_to_token.project.bias": (DIM,),
    }
    for number, width in ((1, 147), (2, 576)):
        unit = f"tokens_to_token.attention{number}."
        shapes |= {unit + name: shape for name, shape in block_shapes(width, 64, 64).items()}
    for number in range(14):
        block = block_shapes(DIM, DIM, 3 * DIM)
        shapes |= {f"blocks.{number}.{name}": shape for name, shape in block.items()}
    return {
        name: 0.05 * torch.randn(shape, generator=generator) + ("norm" in name)
        for name, shape in shapes.items()
    }


def block_shapes(width: int, dim: int, hidden: int) -> dict[str, tuple[int, ...]]:
    return {
        "norm1.weight": (width,),
        "norm1.bias": (width,),
        "attn.qkv.weight": (3 * dim, width),
        "attn.proj.weight": (dim, dim),
        "attn.proj.bias": (dim,),
        "norm2.weight": (dim,),
        "norm2.bias": (dim,),
        "mlp.fc1.weight": (hidden, dim),
        "mlp.fc1.bias": (hidden,),
        "mlp.fc2.weight": (dim, hidden),
        "mlp.fc2.bias": (dim,),
    }


@torch.no_grad()
def test_published_weights_give_the_published_function(tmp_path: Path) -> None:
    file, state = tmp_path / "t2t.pth.tar", published_weights(cells=2 * 2)
    torch.save({"state_dict_ema": state}, file)
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    official = {name: value.double() for name, value in state.items()}
    summary, patches = slow_vit(official, images, torch.zeros(2, DIM), SLOW)
    features = branch((32, 32), file)(images, None)
    torch.testing.assert_close(features.summary, summary, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(features.patches, patches, rtol=1e-9, atol=1e-9)


def test_published_position_table_is_resized_and_stays_fixed(tmp_path: Path) -> None:
    file, state = tmp_path / "t2t.pth", published_weights(cells=14 * 14)
    torch.save(state, file)
    position = branch((64, 32), file).trunk.pos_embed
    assert not position.requires_grad
    expected = slow_bilinear(state["pos_embed"][0, 1:].reshape(14, 14, DIM), (4, 2))
    torch.testing.assert_close(position[0, 1:].reshape(4, 2, DIM).float(), expected)
    torch.testing.assert_close(position[0, 0].float(), state["pos_embed"][0, 0])


def test_weights_of_another_width_are_refused_and_timm_has_none(tmp_path: Path) -> None:
    file, state = tmp_path / "t2t.pth", published_weights(cells=4)
    state["tokens_to_token.project.weight"] = torch.zeros(512, 576)
    torch.save(state, file)
    with pytest.raises(ValueError, match=r"patch_embed\.project\.weight \[512, 576\] instead"):
        branch((32, 32), file)
    with pytest.raises(ValueError, match="cannot get timm's weights of 't2t_vit_t_14'"):
        branch((32, 32), Path("timm"))


class Embedder(torch.nn.Module):
    """A model reduced to its embedding, which is all that an exported one gives."""

    def __init__(self, model: FusionReID) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, cameras: Tensor, views: Tensor) -> Tensor:
        return self.model(images, cameras, views).embedding


@torch.no_grad()
def test_export_keeps_any_batch() -> None:
    model = small_model(
        cnn="resnet10t", transformer="t2t_vit_t_14", patch_stride=16, view_count=2, htm_depth=1
    ).eval()
    arguments = (torch.randn(2, 3, 64, 32), torch.tensor([0, -1]), torch.tensor([1, -1]))
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(
        Embedder(model).eval(), arguments, dynamic_shapes=({0: batch},) * 3
    )
    images, cameras, views = torch.randn(5, 3, 64, 32), torch.arange(5) % 3, torch.arange(5) % 2
    torch.testing.assert_close(
        exported.module()(images, cameras, views),
        model(images, cameras, views).embedding,
        rtol=1e-4,
        atol=1e-5,
    )
