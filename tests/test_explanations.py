"""What each network offers to be looked at: which explanations, on which grids."""

import pytest
import torch

from reid_models import create_model, list_models
from reid_models.attention_maps import record_attention
from reid_models.explanations import AttentionRollout, CrossAttention, GradCam, PartSimilarity
from reid_models.fusion_reid import FusionReID
from reid_models.model import ReidModel
from tests import small_lvit
from tests.small_models import IMAGE_SIZE, SMALL, new_model, settled_model


def seen(model: ReidModel) -> dict[str, tuple[int, ...]]:
    """Grid of every explanation, computed."""
    pictures, cameras = torch.randn(1, 3, *model.image_size), torch.tensor([0])
    found = model.explanations()
    attended = [e for e in found if isinstance(e, AttentionRollout | CrossAttention)]
    with torch.no_grad(), record_attention(m for e in attended for m in e.modules) as maps:
        embedding = model(pictures, cameras).embedding
    grids = {}
    for explanation in found:
        if isinstance(explanation, GradCam):
            heat = explanation.heat(model, pictures, cameras, lambda e: e.square().sum(dim=1))
        elif isinstance(explanation, PartSimilarity):
            heat = explanation.heat(embedding, embedding)
        else:
            heat = explanation.heat(maps)
            assert heat.min() >= 0
            assert 0 < heat.sum() <= 1.0001
        assert heat.isfinite().all()
        grids[explanation.title] = tuple(heat.shape[1:])
    return grids


EXPECTED = {
    "fusion_reid": 6,
    "la_transformer": 3,
    "la_transformer_pp": 3,
    "levit_l": 2,
    "levit_s": 2,
    "lvit_net": 4,
}


@pytest.mark.parametrize("name", list_models())
def test_every_network_can_be_looked_at(name: str) -> None:
    assert len(seen(settled_model(name))) == EXPECTED[name]


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("fusion_reid", {"cnn": None}, 1),
        ("fusion_reid", {"transformer": None}, 1),
        ("fusion_reid", {"htm_mode": "encode"}, 2),
        ("fusion_reid", {"htm_mode": "fuse_encode", "mfu_sharing": "shared"}, 6),
        ("fusion_reid", {"embed_features": ("cnn_fused",), "mfu_sharing": "shared"}, 5),
        ("fusion_reid", {"embed_features": ("cnn_global",)}, 1),
        ("fusion_reid", {"transformer": "t2t_vit_t_14", "patch_stride": 16}, 6),
        ("lvit_net", {"dfcf_iterations": 0}, 2),
        ("lvit_net", {**small_lvit.LEVELS, "dfcf_iterations": 4}, 4),
        ("lvit_net", {**small_lvit.SWIN, "side_information": 0.0, "dfcf_iterations": 1}, 2),
        ("la_transformer", {"embed_kind": "mean"}, 2),
    ],
)
def test_options_change_what_there_is(name: str, options: dict[str, object], count: int) -> None:
    settings = {**SMALL[name].options, **options}
    if name == "fusion_reid" and None in options.values():
        settings = {k: v for k, v in settings.items() if k in ("cnn", "transformer")}
    model = create_model(name, 5, image_size=IMAGE_SIZE, camera_count=3, **settings).eval()
    assert len(seen(model)) == count


def test_grids_are_the_branches_own() -> None:
    model = new_model("fusion_reid", patch_stride=12).eval()
    assert isinstance(model, FusionReID)
    assert model.cnn is not None
    assert model.transformer is not None
    cnn, vit = model.cnn.grid, model.transformer.grid
    assert cnn != vit
    assert list(seen(model).values()) == [vit, cnn, vit, cnn, vit, cnn]
