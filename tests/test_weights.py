"""Weights in and out, on checkpoints that the tests write in timm's own layout."""

from pathlib import Path

import huggingface_hub.constants
import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from reid_models import create_model
from reid_models.model import ReidModel
from reid_models.weights import (
    load_model,
    load_strict,
    read_state_dict,
    resize_position_embedding,
    save_model,
    timm_state_dict,
)

IMAGE_SIZE = (64, 32)
CNN = "resnet10t"
TRANSFORMER = "vit_tiny_patch16_224"


def fusion(seed: int = 0, **settings: object) -> ReidModel:
    torch.manual_seed(seed)
    settings = {"cnn": CNN, "transformer": TRANSFORMER, "fusion_dim": 12, **settings}
    return create_model("fusion_reid", 4, image_size=IMAGE_SIZE, camera_count=3, **settings)


def timm_weights(name: str) -> dict[str, Tensor]:
    """A checkpoint as timm publishes one: native resolution, classifier of 1000 classes."""
    torch.manual_seed(7)
    return timm.create_model(name).state_dict()


def assert_same_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    own = model.state_dict()
    assert own.keys() == state.keys()
    for key, value in own.items():
        assert torch.equal(value, state[key]), key


def test_whole_model_round_trip(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    model = fusion(seed=1).to(memory_format=torch.channels_last)
    save_model(model, file)
    other = fusion(seed=2)
    load_model(other, file)
    assert_same_state(other, model.state_dict())
    assert_same_state(fusion(seed=3, pretrained=file), model.state_dict())


def test_whole_model_wins_over_the_files_of_its_branches(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_model(fusion(seed=1), file)
    loaded = fusion(pretrained=str(file), cnn_weights=str(tmp_path / "long gone.safetensors"))
    assert_same_state(loaded, safetensors.torch.load_file(file))


def test_whole_model_of_another_shape_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_model(fusion(htm_depth=1), file)
    with pytest.raises(ValueError, match=r"do not fit the model: \d+ missing \(htms\.1\."):
        fusion(htm_depth=2, pretrained=file)
    with pytest.raises(ValueError, match=r"unexpected \(htms\.0\.seu\.shared"):
        fusion(htm_depth=1, seu_sharing="separate", pretrained=file)
    with pytest.raises(
        ValueError, match=r"of another shape \(lru\.cnn\.3\.weight \[12, 512, 1, 1\]"
    ):
        fusion(htm_depth=1, fusion_dim=24, pretrained=file)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_cnn_file_is_loaded_without_its_classifier(tmp_path: Path, suffix: str) -> None:
    file, state = tmp_path / f"cnn{suffix}", timm_weights(CNN)
    if suffix == ".pth":
        torch.save({"state_dict": state, "epoch": 3}, file)
    else:
        safetensors.torch.save_file(state, file)
    trunk = fusion(cnn_weights=str(file)).cnn.trunk
    assert_same_state(trunk, {k: v for k, v in state.items() if not k.startswith("fc.")})


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "mobilenetv2_100"])
def test_other_cnn_families_load_strictly(tmp_path: Path, name: str) -> None:
    file, state = tmp_path / "cnn.safetensors", timm_weights(name)
    safetensors.torch.save_file(state, file)
    trunk = fusion(cnn=name, cnn_weights=str(file)).cnn.trunk
    expected = {k: v for k, v in state.items() if not k.startswith("classifier.")}
    assert_same_state(trunk, expected)


def test_old_files_may_lack_batch_counters(tmp_path: Path) -> None:
    file, state = tmp_path / "cnn.safetensors", timm_weights(CNN)
    state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    safetensors.torch.save_file(state, file)
    trunk = fusion(cnn_weights=str(file)).cnn.trunk
    assert torch.equal(trunk.layer4[0].conv2.weight, state["layer4.0.conv2.weight"])


def test_vit_file_gets_its_position_grid_resized(tmp_path: Path) -> None:
    file, state = tmp_path / "vit.safetensors", timm_weights(TRANSFORMER)
    state["pos_embed"] = torch.randn(1, 1 + 14 * 14, 192)
    safetensors.torch.save_file(state, file)
    trunk = fusion(transformer_weights=str(file)).transformer.trunk
    position = trunk.pos_embed.detach()
    assert position.shape == (1, 1 + 5 * 2, 192)
    assert torch.equal(position[:, 0], state["pos_embed"][:, 0])
    expected = slow_bilinear(state["pos_embed"][0, 1:].reshape(14, 14, 192), (5, 2))
    torch.testing.assert_close(position[0, 1:].reshape(5, 2, 192), expected)
    assert torch.equal(trunk.blocks[11].mlp.fc2.weight, state["blocks.11.mlp.fc2.weight"])


def test_distillation_token_is_dropped(tmp_path: Path) -> None:
    file = tmp_path / "deit.pth"
    state = timm_weights("deit_tiny_distilled_patch16_224")
    state["pos_embed"] = torch.randn(1, 2 + 14 * 14, 192)
    torch.save({"model": state}, file)
    trunk = fusion(transformer_weights=str(file)).transformer.trunk
    assert torch.equal(trunk.pos_embed[:, 0], state["pos_embed"][:, 0])
    expected = slow_bilinear(state["pos_embed"][0, 2:].reshape(14, 14, 192), (5, 2))
    torch.testing.assert_close(trunk.pos_embed[0, 1:].reshape(5, 2, 192).detach(), expected)


def slow_bilinear(grid_hwC: Tensor, size: tuple[int, int]) -> Tensor:
    """Half-pixel centres, clamped at the border: align_corners false, cell by cell."""
    rows, columns, _ = grid_hwC.shape
    out = torch.zeros(*size, grid_hwC.shape[2])
    for i in range(size[0]):
        for j in range(size[1]):
            y = max((i + 0.5) * rows / size[0] - 0.5, 0.0)
            x = max((j + 0.5) * columns / size[1] - 0.5, 0.0)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
            upper = (1 - (x - left)) * grid_hwC[top, left] + (x - left) * grid_hwC[top, right]
            lower = (1 - (x - left)) * grid_hwC[bottom, left] + (x - left) * grid_hwC[bottom, right]
            out[i, j] = (1 - (y - top)) * upper + (y - top) * lower
    return out


@pytest.mark.parametrize(("cells", "grid"), [(196, (21, 10)), (196, (4, 6)), (49, (20, 3))])
def test_resize_position_embedding(cells: int, grid: tuple[int, int]) -> None:
    position = torch.randn(1, 2 + cells, 5)
    side = int(cells**0.5)
    resized = resize_position_embedding(position, grid=grid, prefix_tokens=2)
    assert torch.equal(resized[:, :2], position[:, :2])
    expected = slow_bilinear(position[0, 2:].reshape(side, side, 5), grid)
    torch.testing.assert_close(resized[0, 2:].reshape(*grid, 5), expected)


def test_position_embedding_of_the_same_grid_is_left_alone() -> None:
    position = torch.randn(1, 1 + 210, 5)
    assert torch.equal(
        resize_position_embedding(position, grid=(21, 10), prefix_tokens=1), position
    )
    with pytest.raises(
        ValueError, match="210 cells is neither square nor the model's grid of 16x8"
    ):
        resize_position_embedding(position, grid=(16, 8), prefix_tokens=1)


def test_unfitting_branch_file_lists_the_keys_and_changes_nothing(tmp_path: Path) -> None:
    state = timm_weights(CNN)
    state["conv1.0.weight"] = state["conv1.0.weight"][:, :1].contiguous()
    state["stranger"] = torch.zeros(2)
    for key in [key for key in state if key.startswith("layer3.")]:
        del state[key]
    file = tmp_path / "broken.safetensors"
    safetensors.torch.save_file(state, file)
    model = fusion(seed=1)
    before = {key: value.clone() for key, value in model.cnn.trunk.state_dict().items()}
    with pytest.raises(ValueError, match="do not fit the model") as error:
        model.cnn.load(str(file))
    for expected in (
        str(file),
        "missing (layer3.0.conv1.weight, ",
        "more)",
        "1 unexpected (stranger)",
        "1 of another shape (conv1.0.weight [24, 1, 3, 3] instead of [24, 3, 3, 3])",
    ):
        assert expected in str(error.value)
    assert_same_state(model.cnn.trunk, before)


def test_classifier_keys_are_skipped_only_where_the_module_has_none() -> None:
    module = nn.ModuleDict({"fc": nn.Linear(2, 2)})
    state = {"fc.weight": torch.ones(2, 2), "fc.bias": torch.ones(2), "fc.other": torch.ones(1)}
    load_strict(module, state, source="test", skip_prefixes=["fc."])
    assert torch.equal(module["fc"].weight, torch.ones(2, 2))
    with pytest.raises(ValueError, match=r"1 unexpected \(fc\.other\)"):
        load_strict(module, state, source="test")


@pytest.mark.parametrize("name", ["cut.safetensors", "cut.pth", "text.safetensors", "text.pth"])
def test_damaged_files_are_refused(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    if name.startswith("text"):
        file.write_text("these are no weights")
    else:
        write = torch.save if file.suffix == ".pth" else safetensors.torch.save_file
        write({"a": torch.zeros(1000)}, file)
        file.write_bytes(file.read_bytes()[:1500])
    with pytest.raises(ValueError, match=f"cannot read weights from .*{name}"):
        read_state_dict(file)


@pytest.mark.parametrize(
    "wrappers", [["model"], ["state_dict"], ["state_dict_ema"], ["state_dict_ema", "model"]]
)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_checkpoints_are_unwrapped(tmp_path: Path, wrappers: list[str], prefix: str) -> None:
    file = tmp_path / "wrapped.pth.tar"
    content: dict[str, object] = {f"{prefix}a.weight": torch.ones(2), f"{prefix}b": torch.ones(1)}
    for wrapper in wrappers:
        content = {wrapper: content}
    torch.save(content, file)
    assert set(read_state_dict(file)) == {"a.weight", "b"}


def test_a_part_that_is_called_module_keeps_its_name(tmp_path: Path) -> None:
    file = tmp_path / "module.safetensors"
    safetensors.torch.save_file({"module.a": torch.ones(1), "b": torch.ones(1)}, file)
    assert set(read_state_dict(file)) == {"module.a", "b"}


def test_files_that_hold_no_tensors_or_are_absent(tmp_path: Path) -> None:
    file = tmp_path / "numbers.pth"
    for content in ({"a": 1}, {1: torch.ones(1)}, [torch.ones(1)]):
        torch.save({"state_dict": content}, file)
        with pytest.raises(ValueError, match="something other than a dict of named tensors"):
            read_state_dict(file)
    with pytest.raises(ValueError, match=r"there is no weights file at .*absent\.pth"):
        read_state_dict(tmp_path / "absent.pth")


class _Code:
    def __reduce__(self) -> tuple[object, ...]:
        return (print, ("code ran",))


def test_pickled_code_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "code.pth"
    torch.save({"a": _Code()}, file)
    with pytest.raises(ValueError, match="cannot read weights"):
        read_state_dict(file)
    assert "code ran" not in capsys.readouterr().out


@pytest.fixture
def timm_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache of timm's and no way to the network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def put_into_cache(cache: Path, name: str, state: dict[str, Tensor]) -> None:
    repository = cache / f"models--{timm.get_pretrained_cfg(name).hf_hub_id.replace('/', '--')}"
    snapshot = repository / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123")
    safetensors.torch.save_file(state, snapshot / "model.safetensors")


def test_pretrained_takes_timms_weights_for_both_branches(timm_cache: Path) -> None:
    cnn, vit = timm_weights(CNN), timm_weights(TRANSFORMER)
    put_into_cache(timm_cache, CNN, cnn)
    put_into_cache(timm_cache, TRANSFORMER, vit)
    model = fusion(pretrained=True)
    assert torch.equal(model.cnn.trunk.layer2[0].conv1.weight, cnn["layer2.0.conv1.weight"])
    blocks = model.transformer.trunk.blocks
    assert torch.equal(blocks[0].attn.qkv.weight, vit["blocks.0.attn.qkv.weight"])


def test_a_branch_can_take_timms_weights_alone(timm_cache: Path) -> None:
    cnn = timm_weights(CNN)
    put_into_cache(timm_cache, CNN, cnn)
    model = fusion(seed=5, cnn_weights="timm")
    assert torch.equal(model.cnn.trunk.layer2[0].conv1.weight, cnn["layer2.0.conv1.weight"])
    with pytest.raises(ValueError, match=f"cannot get timm's weights of '{TRANSFORMER}'"):
        fusion(pretrained=True)


def test_a_network_without_published_weights_is_named() -> None:
    with pytest.raises(ValueError, match="cannot get timm's weights of 'resnet200"):
        timm_state_dict("resnet200")
