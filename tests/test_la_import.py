"""Official checkpoints of LA-Transformer and LA-TF++: what is taken, and what is refused."""

from pathlib import Path

import pytest
import torch

from reid_models.official import load_official
from reid_models.weights import resize_position_embedding
from tests.slow_la import (
    COLUMNS,
    ROWS,
    assert_equal,
    imported,
    official_checkpoint,
    small_model,
)


def test_import_resizes_the_position_embedding(tmp_path: Path) -> None:
    state = official_checkpoint(ROWS, cells=14 * 14)
    model = imported(tmp_path, state)
    expected = resize_position_embedding(state["pos_embed"], grid=(ROWS, COLUMNS), prefix_tokens=1)
    assert_equal(model.transformer.trunk.pos_embed.detach(), expected)


def test_import_takes_one_copy_of_the_tokens_and_refuses_two_different(tmp_path: Path) -> None:
    state = official_checkpoint(ROWS)
    token = state.pop("cls_token")
    del state["model.pos_embed"]
    model = imported(tmp_path, state)
    assert_equal(model.transformer.trunk.cls_token.detach(), token)
    assert_equal(model.transformer.trunk.pos_embed.detach(), state["pos_embed"])
    with pytest.raises(ValueError, match=r"two different tensors as cls_token and model\.cls_tok"):
        imported(tmp_path, {**state, "cls_token": token + 1})


BROKEN = {
    "missing": (
        {"model.norm.weight": None},
        "1 missing (transformer.trunk.norm.weight)",
        ("transformer.trunk.norm.weight",),
    ),
    "missing head": (
        {key: None for key in official_checkpoint(1) if key.startswith("classifier0")},
        "(heads.row_0.reduction.weight, heads.row_0.reduction.bias, heads.row_0.neck.weight,",
        tuple(
            f"heads.row_0.{name}"
            for name in (
                "classifier.bias",
                "classifier.weight",
                "neck.bias",
                "neck.num_batches_tracked",
                "neck.running_mean",
                "neck.running_var",
                "neck.weight",
                "reduction.bias",
                "reduction.weight",
            )
        ),
    ),
    "extra": (
        {"model.stranger": torch.zeros(1), "classifier4.classifier.0.bias": torch.zeros(5)},
        "2 unexpected (transformer.trunk.stranger, classifier4.classifier.0.bias)",
        ("classifier4.classifier.0.bias", "transformer.trunk.stranger"),
    ),
    "misshapen": (
        {"classifier2.classifier.0.weight": torch.zeros(9, 256)},
        "1 of another shape (heads.row_2.classifier.weight [9, 256] instead of [5, 256])",
        ("heads.row_2.classifier.weight",),
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_unfitting_checkpoint_is_refused_unless_allowed(tmp_path: Path, case: str) -> None:
    changes, message, names = BROKEN[case]
    state = {**official_checkpoint(ROWS), **changes}
    file = tmp_path / "broken.pth"
    torch.save({key: value for key, value in state.items() if value is not None}, file)
    model = small_model().double()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="do not fit the model") as error:
        load_official(model, file)
    assert message in str(error.value)
    assert str(file) in str(error.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())

    assert load_official(model, file, allow=names) == names
    after = model.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in names if key in before)
    assert_equal(after["heads.row_3.reduction.weight"], state["classifier3.add_block.0.weight"])


def test_one_string_is_not_taken_for_its_letters(tmp_path: Path) -> None:
    file = tmp_path / "rows.pth"
    torch.save(official_checkpoint(1), file)
    with pytest.raises(ValueError, match="allow is a collection .* got the string 'heads.'"):
        load_official(small_model().double(), file, allow="heads.")


def test_backbone_of_one_system_can_be_imported_into_the_other(tmp_path: Path) -> None:
    state = official_checkpoint(ROWS)
    file = tmp_path / "rows.pth"
    torch.save(state, file)
    model = small_model("la_transformer_pp").double()
    with pytest.raises(ValueError, match="unexpected .classifier1.add_block.0.weight"):
        load_official(model, file)
    let_off = load_official(model, file, allow=["classifier"])
    assert len(let_off) == (ROWS - 1) * 9
    block = model.transformer.trunk.blocks[11]
    assert_equal(block.mlp.fc2.weight.detach(), state["model.blocks.11.mlp.fc2.weight"])
