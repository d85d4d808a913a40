"""Official FusionReID checkpoints: read into the model, they give the official function."""

import math
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from reid_models.fusion_import import load_official
from reid_models.fusion_reid import FusionReID
from tests.official_fusion import OFFICIAL, OfficialModel, is_parameter, random_state
from tests.slow_branches import VIT_TINY, Vit, soft_split_patches
from tests.slow_fusion import slow_fusion_reid
from tests.small_fusion import CAMERAS, CLASSES, IMAGE_SIZE, small_model

SMALL = {
    "resnet_blocks": (2, 2, 2, 2),
    "dim": 192,
    "patches": 5 * 2,
    "side_rows": CAMERAS,
    "fusion_dim": 12,
    "classes": CLASSES,
}
T2T_14 = {"dim": 384, "depth": 14, "mlp_ratio": 3, "qkv_bias": False, "patches": 8, "t2t": True}
SEUS = {"shared": ("SEU",), "separate": ("SEU1", "SEU2")}
MFUS = {"shared": ("MFU",), "separate": ("MUF_RES", "MFU_FORMER")}


def official_state(**settings: object) -> dict[str, Tensor]:
    return random_state(OfficialModel(**(SMALL | settings)).shapes())


def load(
    state: dict[str, Tensor], folder: Path, *, allow: tuple[str, ...] = (), **options: object
) -> tuple[FusionReID, tuple[str, ...]]:
    file = folder / "official.pth"
    torch.save(state, file)
    model = small_model(**options)
    return model, load_official(model, file, allow=allow)


def assert_official_function(
    model: FusionReID,
    state: dict[str, Tensor],
    *,
    vit: Vit = VIT_TINY,
    views: list[int] | None = None,
) -> None:
    images = torch.randn(3, 3, *IMAGE_SIZE, dtype=torch.float64)
    official = {name: value.double() for name, value in state.items()}
    expected = slow_fusion_reid(
        official,
        images,
        [2, -1, 0],
        layout=OFFICIAL,
        vit=vit,
        depth=2,
        seu_sharing=model.options.seu_sharing,
        mfu_sharing=model.options.mfu_sharing,
        views=views,
        view_count=max(model.options.view_count, 1),
    )
    assert expected.isfinite().all()
    assert expected.abs().max() > 0.1
    view_indices = None if views is None else torch.tensor(views)
    embedding = model.double().eval()(images, torch.tensor([2, -1, 0]), view_indices).embedding
    torch.testing.assert_close(embedding, expected, rtol=1e-9, atol=1e-9)


def test_the_layout_of_these_tests_has_the_published_number_of_parameters() -> None:
    def parameters(**settings: object) -> int:
        shapes = OfficialModel(**settings).shapes()
        return sum(math.prod(shape) for name, shape in shapes.items() if is_parameter(name))

    assert parameters() == 159_225_903
    assert parameters(seus=SEUS["separate"]) == 173_400_111
    assert parameters(mfus=MFUS["shared"]) == 145_051_695
    on_msmt = parameters(classes=1041, side_rows=15, **T2T_14 | {"patches": 128})
    assert round(on_msmt / 1e6, 3) == 95.190


@pytest.mark.parametrize("seu", ["shared", "separate"])
@pytest.mark.parametrize("mfu", ["shared", "separate"])
@torch.no_grad()
def test_official_checkpoint_gives_the_official_function(
    tmp_path: Path, seu: str, mfu: str
) -> None:
    state = official_state(seus=SEUS[seu], mfus=MFUS[mfu])
    model, let_off = load(state, tmp_path, seu_sharing=seu, mfu_sharing=mfu)
    assert let_off == ()
    assert_official_function(model, state)


@torch.no_grad()
def test_official_t2t_checkpoint(tmp_path: Path) -> None:
    state = official_state(**T2T_14)
    model, _ = load(state, tmp_path, transformer="t2t_vit_t_14", patch_stride=16)
    patches = soft_split_patches("tokens_to_token")
    assert_official_function(model, state, vit=Vit(blocks=14, heads=6, eps=1e-5, patches=patches))


@torch.no_grad()
def test_official_checkpoint_with_cameras_and_views(tmp_path: Path) -> None:
    state = official_state(side_rows=CAMERAS * 2)
    model, _ = load(state, tmp_path, view_count=2)
    assert_official_function(model, state, views=[1, 0, -1])


def test_a_position_table_of_as_many_patches_stays_as_it_is(tmp_path: Path) -> None:
    """A stride of 2 makes 25 rows of 9 patches, as many as a square of 15 has."""
    state = official_state(patches=25 * 9)
    model, _ = load(state, tmp_path, patch_stride=2)
    assert model.transformer.grid == (25, 9)
    assert torch.equal(model.transformer.trunk.pos_embed, state["transformer.base.pos_embed"])


def test_heads_go_to_their_features(tmp_path: Path) -> None:
    state = official_state()
    model, _ = load(state, tmp_path)
    places = {
        "cnn_global": "resnet.{}",
        "transformer_global": "transformer.{}",
        "cnn_initial": "{}_1",
        "transformer_initial": "{}_2",
        "cnn_fused": "{}_3",
        "transformer_fused": "{}_4",
    }
    assert set(places) == set(model.heads)
    for name, place in places.items():
        head = model.heads[name]
        assert torch.equal(head.classifier.weight, state[f"{place.format('classifier')}.weight"])
        for entry, value in head.neck.state_dict().items():
            assert torch.equal(value, state[f"{place.format('bottleneck')}.{entry}"]), entry


@torch.no_grad()
def test_older_names_and_several_gpus(tmp_path: Path) -> None:
    state = official_state()
    for pattern, older in (
        (r"^HTM\.", "mix."),
        (r"\.SEU\.", ".sa."),
        (r"\.MUF_RES\.", ".res_q."),
        (r"\.MFU_FORMER\.", ".former_q."),
        (r"^", "module."),
    ):
        state = {re.sub(pattern, older, name, count=1): value for name, value in state.items()}
    model, _ = load(state, tmp_path)
    assert_official_function(model, official_state())


@pytest.mark.parametrize(
    ("off", "branch"), [("transformer", "cnn_branch"), ("cnn", "transformer_branch")]
)
@torch.no_grad()
def test_one_branch_alone(tmp_path: Path, off: str, branch: str) -> None:
    both = official_state()
    prefix = "resnet." if off == "transformer" else "transformer."
    shapes = getattr(OfficialModel(**SMALL), branch)()
    state = {name: both[f"{prefix}{name}"] for name in shapes}
    alone, _ = load(state, tmp_path, **{off: None})
    whole, _ = load(both, tmp_path)
    images, cameras = torch.randn(2, 3, *IMAGE_SIZE), torch.tensor([1, -1])
    feature = whole.eval()(images, cameras).embedding
    feature = feature[:, :2048] if off == "transformer" else feature[:, 2048 : 2048 + 192]
    torch.testing.assert_close(alone.eval()(images, cameras).embedding, feature)


def test_what_does_not_fit_is_listed_and_changes_nothing(tmp_path: Path) -> None:
    state = official_state()
    del state["gap_r.p"]
    state["res_LRU.ptconv.weight"] = torch.zeros(24, 2048, 1, 1)
    state["HTM.blocks.2.SEU.norm.weight"] = torch.zeros(12)
    file = tmp_path / "broken.pth"
    torch.save(state, file)
    model = small_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="do not fit the model") as error:
        load_official(model, file, allow=("heads.", "lru.transformer."))
    for expected in (
        "1 missing (gem.cnn.p)",
        "1 unexpected (htms.2.seu.shared.norm.weight)",
        "1 of another shape (lru.cnn.3.weight [24, 2048, 1, 1] instead of [12, 2048, 1, 1])",
    ):
        assert expected in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_another_sharing_pattern_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"missing \(htms\.0\.seu\.shared.*unexpected \(htms\.0"):
        load(official_state(seus=SEUS["separate"]), tmp_path)


@torch.no_grad()
def test_other_identities_and_cameras_are_allowed_on_demand(tmp_path: Path) -> None:
    state = official_state(classes=9, side_rows=7) | {"strange": torch.zeros(1)}
    allow = ("heads.", "transformer.side_information.", "strange")
    fresh = small_model()
    model, let_off = load(state, tmp_path, allow=allow)
    classifiers = sorted(f"heads.{name}.classifier.weight" for name in model.heads)
    assert let_off == (*classifiers, "strange", "transformer.side_information.table_KC")
    for name in let_off:
        if name != "strange":
            assert torch.equal(model.state_dict()[name], fresh.state_dict()[name])
    assert torch.equal(model.heads["cnn_fused"].neck.weight, state["bottleneck_3.weight"])
    table = model.transformer.side_information.table_KC
    state["transformer.base.sie_embed"] = table.unsqueeze(1).clone()
    assert_official_function(model, {k: v for k, v in state.items() if k != "strange"})
