"""Initial values of the branches, where nothing is loaded into them."""

import pytest
import torch
import torchvision

from reid_models.cnn_branch import CnnBranch
from reid_models.t2t import build_t2t_vit
from reid_models.transformer_networks import OWN_NETWORKS, build_transformer


@pytest.mark.parametrize("name", OWN_NETWORKS)
def test_networks_that_timm_lacks_drop_paths_as_deep_as_they_are_asked_to(name: str) -> None:
    with torch.device("meta"):
        trunk = build_transformer(name, (64, 32), patch_stride=16, drop_path=0.2)
    depth = len(trunk.blocks)
    rates = [getattr(block.drop_path2, "drop_prob", 0.0) for block in trunk.blocks]
    assert rates == pytest.approx([0.2 * i / (depth - 1) for i in range(depth)])


def test_t2t_starts_like_any_vision_transformer() -> None:
    torch.manual_seed(0)
    trunk = build_t2t_vit((64, 32), patch_stride=16, drop_path=0.0, dim=192, depth=2, heads=3)
    for name, module in trunk.named_modules():
        if isinstance(module, torch.nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.05), name
            assert module.bias is None or not module.bias.any(), name


@pytest.mark.parametrize("stem", ["reid", "torchvision"])
def test_resnets_start_as_those_of_torchvision(stem: str) -> None:
    torch.manual_seed(0)
    ours = CnnBranch("resnet50", (64, 32), stem=stem).trunk.state_dict()
    theirs = torchvision.models.resnet50().state_dict()
    assert ours.keys() == {name for name in theirs if not name.startswith("fc.")}
    for name, tensor in ours.items():
        if tensor.ndim == 4:
            assert tensor.std().item() == pytest.approx(theirs[name].std().item(), rel=0.1), name
        else:
            assert torch.equal(tensor, theirs[name]), name
