"""`reid import`: official checkpoints become model folders that embed as the official model."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pipelines.cli_import import import_checkpoint
from pipelines.embedder import Embedder, read_card
from pipelines.errors import UserError
from pipelines.recipe import Recipe
from pipelines.recipe_file import check_recipe, load_recipe
from pipelines.store import Folder, sha256_file
from reid_models import create_model
from reid_models.levit_import import official_state_dict
from tests.commands import answer
from tests.official_fusion import OFFICIAL, OfficialModel, random_state
from tests.slow_fusion import slow_fusion_reid
from tests.test_bad_input import refuses

OVERRIDES = (
    "model.cnn=resnet26",
    "model.transformer=vit_tiny_patch16_224",
    "model.fusion_dim=12",
    "model.fusion_heads=3",
    "input.image_size=[64,32]",
)
CAMERAS = ("c1", "c2", "c3")


def official_fusion(file: Path) -> dict[str, Tensor]:
    official = OfficialModel(
        resnet_blocks=(2, 2, 2, 2), dim=192, patches=5 * 2, side_rows=3, fusion_dim=12, classes=4
    )
    state = random_state(official.shapes())
    torch.save({f"module.{name}": value for name, value in state.items()}, file)
    return state


def small_recipe() -> Recipe:
    return load_recipe("fusion_reid", OVERRIDES)


def png(seed: int) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (64, 32, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, format="PNG")
    return buffer.getvalue()


def test_the_command_makes_a_folder_that_embeds_as_the_official_model(tmp_path: Path) -> None:
    file, out = tmp_path / "official.pth", tmp_path / "model"
    state = official_fusion(file)
    told = answer(
        "import", "fusion_reid", file, out, *OVERRIDES,
        "--classes", 4, "--cameras", ",".join(CAMERAS),
    )  # fmt: skip
    assert told["model"] == str(out)
    assert told["left_untrained"] == []
    weights = Folder.open(str(out))
    assert told["weights_sha256"] == sha256_file(weights.fs, weights.path("model.safetensors"))

    card = read_card(out)
    assert (card.cameras, card.num_classes, card.image_size) == (CAMERAS, 4, (64, 32))
    pictures = [png(seed) for seed in range(3)]
    embedded = Embedder(card, out / "model.safetensors").embed_files(pictures, ["c3", "x", "c1"])
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(data))) for data in pictures])
    images = torch.from_numpy(pixels).double().permute(0, 3, 1, 2) / 127.5 - 1
    weights64 = {name: value.double() for name, value in state.items()}
    expected = slow_fusion_reid(weights64, images, [2, -1, 0], layout=OFFICIAL, depth=2)
    expected = expected / expected.norm(dim=1, keepdim=True)
    np.testing.assert_allclose(embedded, expected, atol=1e-5)


def test_what_does_not_fit_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "official.pth"
    official_fusion(file)
    command = ("import", "fusion_reid", file, tmp_path / "out", *OVERRIDES)
    refuses(
        *command, "--classes", 5, "--cameras", "c1,c2,c3",
        says=["heads.cnn_global.classifier.weight [4, 2048] instead of [5, 2048]", "--classes"],
    )  # fmt: skip
    unexpected = "unexpected (transformer.side_information.table_KC)"
    refuses(*command, "--classes", 4, says=[unexpected])
    names = "--cameras c1,,c2: give distinct names"
    refuses(*command, "--classes", 4, "--cameras", "c1,,c2", says=[names])
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_allowed_names_stay_untrained_and_are_told(tmp_path: Path) -> None:
    file, out = tmp_path / "official.pth", tmp_path / "model"
    official_fusion(file)
    manifest = import_checkpoint(
        small_recipe(), file, str(out), classes=9, cameras=CAMERAS, allow=["heads."]
    )
    assert len(manifest["left_untrained"]) == 6
    assert all(name.endswith("classifier.weight") for name in manifest["left_untrained"])
    assert json.loads((out / "manifest.json").read_text()) == manifest
    assert read_card(out).num_classes == 9


def test_a_model_is_not_overwritten(tmp_path: Path) -> None:
    file, out = tmp_path / "official.pth", tmp_path / "model"
    official_fusion(file)
    import_checkpoint(small_recipe(), file, str(out), classes=4, cameras=CAMERAS)
    before = (out / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="holds a model already"):
        import_checkpoint(small_recipe(), file, str(out), classes=4, cameras=CAMERAS)
    assert (out / "model.safetensors").read_bytes() == before


def test_broken_values_are_refused(tmp_path: Path) -> None:
    file, out = tmp_path / "official.pth", tmp_path / "model"
    state = official_fusion(file)
    state["gap_r.p"] = torch.tensor([float("nan")])
    torch.save(state, file)
    with pytest.raises(UserError, match="infinite or undefined"):
        import_checkpoint(small_recipe(), file, str(out), classes=4, cameras=CAMERAS)
    assert not (out / "model.safetensors").exists()


def recipe_of(model: dict[str, object], image_size: tuple[int, int]) -> Recipe:
    plain = {"recipe": "other", "model": model, "input": {"image_size": image_size}}
    return check_recipe(plain, "test")


def test_levit(tmp_path: Path) -> None:
    file, out = tmp_path / "levit.pth", tmp_path / "model"
    torch.manual_seed(3)
    model = create_model("levit_s", 4, image_size=(64, 32), window=2)
    torch.save(official_state_dict(model), file)
    recipe = recipe_of({"name": "levit_s", "window": 2}, (64, 32))
    import_checkpoint(recipe, file, str(out), classes=4)
    picture = [png(0)]
    embedder = Embedder(read_card(out), out / "model.safetensors")
    before = model.state_dict()
    for name, value in embedder.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert np.isfinite(embedder.embed_files(picture, [None])).all()


def test_a_system_without_official_code_is_named(tmp_path: Path) -> None:
    file = tmp_path / "any.pth"
    torch.save({"a": torch.zeros(1)}, file)
    model = {
        "name": "lvit_net",
        "transformer": "vit_tiny_patch16_224",
        "local_widths": [16, 16, 32, 32],
        "norm_groups": 8,
        "dfcf_iterations": 2,
    }
    recipe = recipe_of(model, (64, 32))
    with pytest.raises(UserError, match="no official checkpoints of LViTNet"):
        import_checkpoint(recipe, file, str(tmp_path / "out"), classes=4)
