"""LViT-Net in every reading: equal to the formulas written out slowly, trainable, and filled
from the weights of its global branch.
"""

import dataclasses
import math
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from reid_models import ReidLoss
from reid_models.lvit_global import SteppedVit, SwinBranch
from reid_models.lvit_units import LocalBlock
from tests.slow_branches import part, slow_batch_norm
from tests.slow_lvit import slow_feature
from tests.small_lvit import (
    CLASS_TOKENS,
    CLASSES,
    IMAGE_SIZE,
    LEVELS,
    SEPARATE,
    SMALL,
    SWIN,
    small_model,
)
from tests.small_models import scrambled

READINGS = (
    {"dfcf_iterations": 0},
    {"dfcf_iterations": 1},
    {},
    {"dfcf_iterations": 6},
    SEPARATE,
    {"dfcf_iterations": 2, **SEPARATE},
    LEVELS,
    {**LEVELS, **SEPARATE},
    CLASS_TOKENS,
    {**CLASS_TOKENS, **SEPARATE},
    {**CLASS_TOKENS, "dfcf_iterations": 0},
    {**SWIN, "dfcf_iterations": 2},
    {**SWIN, **CLASS_TOKENS, "dfcf_iterations": 2},
    {"reduction_dim": 40, "dfcf_iterations": 1},
    {"embed_kind": "neck", "dfcf_iterations": 1},
    {"reduction_dim": 40, "embed_kind": "neck", "dfcf_iterations": 1},
    {"side_information": 3.0, "dfcf_iterations": 1},
    {**LEVELS, "side_information": 3.0},
    {**LEVELS, "patch_stride": 12},
    {"local_blocks": 1, "lmsf_kernels": (1, 9), "lmsf_reduction": 4, "dfcf_iterations": 1},
    {"local_widths": (16, 16, 8, 8), "dfcf_mlp_ratio": 1, "dfcf_heads": 4, "dfcf_iterations": 1},
)


@pytest.mark.parametrize("options", READINGS, ids=str)
@torch.no_grad()
def test_embedding_equals_the_written_out_formulas(options: dict[str, object]) -> None:
    model = scrambled(small_model(**options)).eval()
    cameras = [2, -1, 0]
    images = torch.randn(3, 3, *IMAGE_SIZE, dtype=torch.float64)
    expected = slow_feature(model, images, cameras)
    if model.options.embed_kind == "neck":
        expected = slow_batch_norm(part(model.state_dict(), "heads.fused.neck"), expected)
    output = model(images, torch.tensor(cameras))
    assert output.embedding.shape == (3, model.embedding_dim)
    assert output.logits == {}
    assert expected.std(dim=0).mean() > 0.01
    torch.testing.assert_close(output.embedding, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("options", [{}, LEVELS, {"embed_kind": "neck"}], ids=str)
@torch.no_grad()
def test_training_output_is_that_of_the_neck_and_the_classifier(options: dict[str, object]) -> None:
    model = scrambled(small_model(drop_path=0.0, dfcf_dropout=0.0, **options))
    images = torch.randn(5, 3, *IMAGE_SIZE, dtype=torch.float64)
    feature = slow_feature(model, images, [-1] * 5)
    w = part(model.state_dict(), "heads.fused")
    spread = (feature.var(0, unbiased=False) + 1e-5).sqrt()
    neck = (feature - feature.mean(0)) / spread * w["neck.weight"] + w["neck.bias"]
    output = model.train()(images)
    torch.testing.assert_close(output.metric_features, {"fused": feature}, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(output.logits["fused"], neck @ w["classifier.weight"].T)
    torch.testing.assert_close(output.embedding, neck if "embed_kind" in options else feature)


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "vit_xsmall_patch16_clip_224"])
@torch.no_grad()
def test_a_transformer_in_parts_is_the_whole_one(name: str) -> None:
    settings = {"patch_stride": 16, "drop_path": 0.0, "camera_count": 3, "side_information": 3.0}
    vit = SteppedVit(name, IMAGE_SIZE, **settings).eval()
    images, cameras = torch.randn(2, 3, *IMAGE_SIZE), torch.tensor([2, -1])
    tokens = vit.embed(images, cameras)
    for part_number in range(5):
        tokens = vit.run_part(tokens, part_number, 5)
    torch.testing.assert_close(vit.trunk.norm(tokens)[:, 0], vit(images, cameras).summary)


@pytest.mark.parametrize("part_name", ["local", "transformer"])
@torch.no_grad()
def test_both_branches_drop_paths_in_training_alone(part_name: str) -> None:
    images = torch.randn(2, 3, *IMAGE_SIZE)
    for rate, training in ((0.5, True), (0.5, False), (0.0, True)):
        branch = small_model(drop_path=rate).train(training).get_submodule(part_name)
        first, second = (
            branch(images)[-1] if part_name == "local" else branch(images, None).summary
            for _ in range(2)
        )
        assert torch.equal(first, second) == (not (rate and training))


@torch.no_grad()
def test_a_local_block_drops_what_it_adds_and_doubles_what_it_keeps() -> None:
    torch.manual_seed(0)
    block = LocalBlock(8, groups=2, drop_path=0.5).train()
    images = torch.randn(20, 8, 4, 4)
    found = {0: 0, 2: 0}
    for sample, before, layers in zip(block(images), images, block.layers(images), strict=True):
        for factor in found:
            found[factor] += torch.allclose(sample, before + factor * layers, atol=1e-5)
    assert sum(found.values()) == 20
    assert min(found.values()) > 0


@pytest.mark.parametrize("residual", ["attention", "mlp"])
@torch.no_grad()
def test_dfcf_drops_from_both_residual_sums_in_training_alone(residual: str) -> None:
    local, whole = torch.randn(2, 8, 192), torch.randn(2, 9, 192)
    for rate, training in ((0.5, True), (0.5, False), (0.0, True)):
        (block,) = small_model(dfcf_dropout=rate).dfcf.blocks.train(training)
        for side in (block.local_side, block.global_side):
            side.residual_scales[1 if residual == "mlp" else 3] = 0.0
        for first, second in zip(block(local, whole), block(local, whole), strict=True):
            assert torch.equal(first, second) == (not (rate and training))


@torch.no_grad()
def test_dfcf_drops_attention_weights_and_outputs() -> None:
    side = small_model(dfcf_dropout=0.5).dfcf.blocks[0].global_side.train()
    side.residual_scales[3] = 0.0
    side.proj.bias.fill_(1.0)
    tokens = torch.randn(2, 9, 192)
    offered = side.offer(tokens)
    added = side.take(tokens, tokens, offered) - tokens
    assert (added.abs() < 1e-6).float().mean().item() == pytest.approx(0.5, abs=0.05)
    side.proj.weight.copy_(torch.eye(192))
    side.proj.bias.zero_()
    exact = 2 * (side.eval().take(tokens, tokens, offered) - tokens)
    kept = (added := side.train().take(tokens, tokens, offered) - tokens).abs() > 1e-6
    assert not torch.allclose(added[kept], exact[kept], atol=1e-4)


@pytest.mark.parametrize("options", READINGS, ids=str)
def test_every_trainable_parameter_gets_a_gradient(options: dict[str, object]) -> None:
    model = small_model(**{"side_information": 0.0, **options})
    output = model(torch.randn(6, 3, *IMAGE_SIZE), torch.tensor([0, 1, 2, -1, 0, 1]))
    loss, _ = ReidLoss(model.loss_layout)(output, torch.tensor([0, 0, 1, 1, 2, 2]))
    loss.backward()
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert {n for n, _ in model.named_parameters()} - trainable.keys() == {"heads.fused.neck.bias"}
    assert [n for n, p in trainable.items() if p.grad is None or not p.grad.isfinite().all()] == []
    assert sum(bool(p.grad.any()) for p in trainable.values()) > 0.95 * len(trainable)


@torch.no_grad()
def test_one_head_starts_at_the_loss_of_guessing() -> None:
    model = small_model()
    assert [dataclasses.astuple(term) for term in model.loss_layout] == [("fused", 1.0, 1.0)]
    output = model(torch.randn(6, 3, *IMAGE_SIZE))
    _, parts = ReidLoss(model.loss_layout)(output, torch.tensor([0, 0, 1, 1, 3, 3]))
    assert parts["id"].item() == pytest.approx(math.log(CLASSES), rel=0.01)
    assert parts["triplet"].item() > 0


def timm_file(tmp_path: Path, name: str) -> tuple[str, dict[str, Tensor]]:
    """A checkpoint as timm publishes one: at its own resolution, with classifier."""
    torch.manual_seed(7)
    state = timm.create_model(name).state_dict()
    file = tmp_path / f"{name}.safetensors"
    safetensors.torch.save_file(state, file)
    return str(file), state


def test_vit_weights_come_from_a_file_of_timm(tmp_path: Path) -> None:
    file, state = timm_file(tmp_path, SMALL["transformer"])
    trunk = small_model(transformer_weights=file).transformer.trunk
    own = trunk.state_dict()
    assert own.keys() == state.keys() - {"head.weight", "head.bias"}
    assert own.pop("pos_embed").shape == (1, 1 + 4 * 2, 192)
    for key, value in own.items():
        assert torch.equal(value, state[key]), key


def test_swin_weights_come_from_a_file_of_timm(tmp_path: Path) -> None:
    file, state = timm_file(tmp_path, SWIN["transformer"])
    ramp = torch.arange(13.0)[:, None] + 100 * torch.arange(13.0)
    for key in state:
        if key.endswith("bias_table"):
            state[key] = ramp.flatten()[:, None].repeat(1, state[key].shape[1])
    safetensors.torch.save_file(state, file)
    trunk = small_model(**SWIN, transformer_weights=file).transformer.trunk
    resized = []
    for key, value in trunk.state_dict().items():
        if value.shape == state[key].shape:
            assert torch.equal(value, state[key]), key
        else:
            resized.append(key)
            windows = trunk.get_submodule(key.rpartition(".")[0]).window_size
            table = value.unflatten(0, (2 * windows[0] - 1, 2 * windows[1] - 1))
            assert table.diff(dim=0).gt(0).all()
            assert table.diff(dim=1).gt(0).all()
            torch.testing.assert_close(value[len(value) // 2], torch.full_like(value[0], 606.0))
    assert resized
    assert all(key.endswith("relative_position_bias_table") for key in resized)


@torch.no_grad()
def test_a_swin_branch_gives_its_last_map_and_the_mean_of_it() -> None:
    branch = SwinBranch(SWIN["transformer"], (64, 96), drop_path=0.0).eval()
    images = torch.randn(2, 3, 64, 96)
    rows = branch.trunk.forward_features(images)
    features = branch(images, None)
    assert features.patches.shape == (2, branch.dim, 2, 3)
    for i, j in ((0, 0), (0, 2), (1, 0)):
        torch.testing.assert_close(features.patches[:, :, i, j], rows[:, i, j])
    mean = sum(rows[:, i, j] for i in range(2) for j in range(3)) / 6
    torch.testing.assert_close(features.summary, mean)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    vit, _ = timm_file(tmp_path, SMALL["transformer"])
    swin, _ = timm_file(tmp_path, SWIN["transformer"])
    for options, file in (({}, swin), (SWIN, vit)):
        with pytest.raises(ValueError, match=r"do not fit the model: \d+ missing .* unexpected"):
            small_model(**options, transformer_weights=file)
    with pytest.raises(ValueError, match="there is no weights file at 'nowhere.pth'"):
        small_model(transformer_weights="nowhere.pth")


def test_pretrained_asks_timm_for_the_transformer(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, bool]] = []
    build = timm.create_model

    def create(name: str, pretrained: bool = False, **settings: object) -> nn.Module:
        asked.append((name, pretrained))
        return build(name, **settings)

    monkeypatch.setattr(timm, "create_model", create)
    for name in (SMALL["transformer"], SWIN["transformer"]):
        asked.clear()
        small_model(transformer=name, pretrained=True)
        assert asked == [(name, False), (name, True)]


@pytest.mark.parametrize(
    "options",
    [{"dfcf_iterations": 0}, LEVELS, CLASS_TOKENS, {**SWIN, "dfcf_iterations": 2}],
    ids=str,
)
def test_every_reading_stays_finite_in_half_precision(options: dict[str, object]) -> None:
    model = small_model(**options)
    images = torch.randn(4, 3, *IMAGE_SIZE)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=dtype):
            output = model.train()(images)
            loss, _ = ReidLoss(model.loss_layout)(output, torch.tensor([0, 0, 1, 1]))
            assert output.embedding.dtype == output.metric_features["fused"].dtype == torch.float32
            assert loss.isfinite()
            with torch.no_grad():
                close = model.eval()(images).embedding
        with torch.no_grad():
            exact = model(images).embedding
        assert nn.functional.cosine_similarity(close, exact).min() > 0.99
