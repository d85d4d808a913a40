"""What is taken for the embedding is chosen anew for a trained model; no weight hangs on it."""

import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch

from pipelines.embedder import WEIGHTS, Embedder, ModelCard
from pipelines.engine import save_weights
from pipelines.errors import UserError
from pipelines.recipe import EMBEDDING_PREFIX
from pipelines.recipe_file import load_recipe
from reid_models import list_models, model_options
from tests.conftest import TINY
from tests.small_models import cameras, images, loss_of, new_model

OTHER: dict[str, tuple[Any, ...]] = {"embed_features": ("cnn_fused", "transformer_global")}
"""Values of options whose types do not list them."""


def choices() -> list[Any]:
    """Every model with every other value of every option that chooses the embedding."""
    found = []
    for name in list_models():
        hints = get_type_hints(model_options(name))
        for field in dataclasses.fields(model_options(name)):
            if field.name.startswith(EMBEDDING_PREFIX):
                values = (True, False) if hints[field.name] is bool else get_args(hints[field.name])
                values = (OTHER[field.name],) if field.name in OTHER else values
                found += [
                    pytest.param(name, field.name, value, id=f"{name}-{field.name}-{value}")
                    for value in values
                    if value != field.default
                ]
    return found


@pytest.mark.parametrize(("name", "option", "value"), choices())
def test_weights_and_losses_do_not_depend_on_it(name: str, option: str, value: object) -> None:
    usual, other = new_model(name), new_model(name, **{option: value})
    other.load_state_dict(usual.state_dict())
    losses = []
    for model in (usual, other):
        torch.manual_seed(3)  # of dropout and drop path
        loss = loss_of(model, images(6))
        loss.backward()
        losses.append(loss)
    torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=0)
    for (key, mine), theirs in zip(usual.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=0, atol=0, msg=key)
    embeddings = [m.eval()(images(2), cameras(2)).embedding for m in (usual, other)]
    assert embeddings[0].shape != embeddings[1].shape or not torch.equal(*embeddings)


def test_every_model_that_chooses_is_here() -> None:
    assert {case.values[0] for case in choices()} == {
        "fusion_reid",
        "la_transformer",
        "la_transformer_pp",
        "lvit_net",
    }


def test_the_card_follows_the_recipe() -> None:
    trained = ModelCard.of_recipe(load_recipe("demo", TINY), cameras=("a", "b"), num_classes=4)
    embedding = (
        "model.embed_features=[cnn_fused,cnn_global]",
        "embed.flip=true",
        "embed.precision=bf16",
    )
    card = trained.as_embedded_by(load_recipe("demo", [*TINY, *embedding]))
    assert card == ModelCard.of_recipe(
        load_recipe("demo", [*TINY, *embedding]), cameras=("a", "b"), num_classes=4
    )
    assert card.embedding_dim == 48 + 512
    again = ModelCard.from_dict(card.to_dict())
    assert (again.flip, again.precision, again.embedding_dim) == (True, "bf16", 560)


def test_bf16_embeds_nearly_the_same(tmp_path: Path) -> None:
    card = ModelCard.of_recipe(load_recipe("demo", TINY), cameras=("a", "b"), num_classes=4)
    save_weights(tmp_path / WEIGHTS, card.create_model())
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 32, 3), dtype=np.uint8)
    usual, half = (
        Embedder(replace(card, precision=name), tmp_path / WEIGHTS).embed(
            pixels, np.array([0, 1, -1])
        )
        for name in ("fp32", "bf16")
    )
    assert half.dtype == usual.dtype == np.float32
    similarity = (half * usual).sum(axis=1)
    assert 0.99 < similarity.min() < similarity.max() < 1 + 1e-5
    assert not np.array_equal(half, usual)


def test_an_imported_model_keeps_its_own_choice() -> None:
    recipe = load_recipe("demo", [*TINY, "model.embed_features=[cnn_fused]"])
    card = ModelCard.of_recipe(recipe, cameras=("a", "b"), num_classes=4)
    usual = load_recipe("demo", [*TINY, "embed.model=somewhere"])
    assert card.as_embedded_by(usual) == card


def test_a_model_that_cannot_be_built() -> None:
    recipe = load_recipe("demo", [*TINY, "input.image_size=[16,16]"])
    with pytest.raises(UserError, match="at least 32x32"):
        ModelCard.of_recipe(recipe, cameras=(), num_classes=4)
