"""Weights with torchvision's names, against torchvision's own networks; the renaming itself."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision

from reid_models.cnn_branch import CnnBranch
from reid_models.key_maps import VIT_KEY_MAP, renamed
from reid_models.vit_branch import VitBranch
from tests.test_weights import slow_bilinear

DIM = 192


def torchvision_vit(image_size: int) -> torchvision.models.VisionTransformer:
    torch.manual_seed(1)
    network = torchvision.models.VisionTransformer(
        image_size=image_size,
        patch_size=16,
        num_layers=12,
        num_heads=3,
        hidden_dim=DIM,
        mlp_dim=768,
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network.eval()


def load_vit(network: torch.nn.Module, file: Path, image_size: tuple[int, int]) -> VitBranch:
    safetensors.torch.save_file(network.state_dict(), file)
    settings = {"patch_stride": 16, "drop_path": 0.0, "camera_count": 0, "side_information": 0.0}
    branch = VitBranch("vit_tiny_patch16_224", image_size, **settings)
    branch.load(str(file))
    return branch.eval()


@torch.no_grad()
def test_vit_of_torchvision(tmp_path: Path) -> None:
    network = torchvision_vit(64)
    branch = load_vit(network, tmp_path / "vit.safetensors", (64, 64))
    images = torch.randn(2, 3, 64, 64)
    network.heads = torch.nn.Identity()
    torch.testing.assert_close(branch(images, None).summary, network(images), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_vit_of_torchvision_gets_its_position_table_resized(tmp_path: Path) -> None:
    network = torchvision_vit(224)
    branch = load_vit(network, tmp_path / "vit.safetensors", (80, 48))
    table = network.encoder.pos_embedding[0]
    position = branch.trunk.pos_embed[0]
    torch.testing.assert_close(position[0], table[0])
    expected = slow_bilinear(table[1:].reshape(14, 14, DIM), (5, 3))
    torch.testing.assert_close(position[1:].reshape(5, 3, DIM), expected)


def test_names_of_older_torchvision_files() -> None:
    state = {f"encoder.layers.encoder_layer_3.mlp.{name}.bias": torch.zeros(1) for name in "03"}
    assert set(renamed(state, VIT_KEY_MAP)) == {"blocks.3.mlp.fc1.bias", "blocks.3.mlp.fc2.bias"}


@pytest.mark.parametrize("name", ["resnet50", "resnet101", "resnet152"])
@torch.no_grad()
def test_resnet_of_torchvision(tmp_path: Path, name: str) -> None:
    torch.manual_seed(2)
    network = getattr(torchvision.models, name)().eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.weight.uniform_(0.4, 0.8)
    file = tmp_path / "resnet.pth"
    torch.save(network.state_dict(), file)
    images = torch.randn(1, 3, 64, 32)
    branch = CnnBranch(name, (64, 32), stem="torchvision", last_stride=2)
    branch.load(str(file))
    trunk = torch.nn.Sequential(*list(network.children())[:-2])
    torch.testing.assert_close(branch.eval()(images), trunk(images), rtol=1e-3, atol=1e-3)
    with_reid_stem = CnnBranch(name, (64, 32))
    with_reid_stem.load(str(file))
    assert with_reid_stem.eval()(images).shape == (1, 2048, 4, 2)


def test_renaming_follows_the_first_rule_and_refuses_to_merge() -> None:
    key_map = ((r"^a\.", "x."), (r"^a", "y"), (r"^b\.", "x."))
    one, two = torch.ones(1), torch.zeros(1)
    assert renamed({"a.w": one, "aw": two, "c": one}, key_map) == {"x.w": one, "yw": two, "c": one}
    with pytest.raises(ValueError, match=r"'a\.w' and 'b\.w' both stand for 'x\.w'"):
        renamed({"a.w": one, "b.w": two}, key_map)
