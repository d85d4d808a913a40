"""A training job in this process, without Ray: averages, unfreezing, freezing, margins and centers,
from the recipe to the final weights, and across interruptions."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.checkpoints import list_checkpoints
from pipelines.errors import UserError
from pipelines.train_job import build_state, trained_parts
from pipelines.train_loop import CHECKPOINTS, FINAL
from reid_models.heads import IdentityHead
from reid_models.losses import ReidLoss
from tests.small_jobs import (
    IDENTITIES,
    LAST,
    MODEL,
    STEPS,
    StoppedError,
    checkpoint_of,
    final,
    job_of,
    recipe_of,
    same,
    train,
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums differ in their last bits with the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def blocks_of(names: set[str]) -> set[int]:
    """Numbers of the transformer's blocks that the names belong to."""
    return {int(n.split("trunk.blocks.")[1].split(".")[0]) for n in names if "trunk.blocks." in n}


EVERYTHING: dict[str, dict[str, Any]] = {
    "unfreeze": {"start": 1, "every": 1, "at_epoch0": False},
    "loss": {"id_loss": "cosface", "center_weight": 0.01, "normalize_triplet": True},
    "schedule": {"warmup_epochs": 1, "hold_epoch": 3, "cosine_after_warmup": True},
}


@pytest.mark.parametrize(
    ("kind", "optimizer", "stops"),
    [
        ("uniform", {"name": "adamw"}, (3, LAST, LAST + 1)),
        ("uniform", {"name": "sgd", "nesterov": True, "lr": 0.01}, (1, 5)),
        ("ema", {"name": "sgd", "freeze": ["patch_embed", "blocks.10"], "lr": 0.01}, (5,)),
        ("none", {"name": "adam"}, (3,)),
    ],
)
def test_an_interrupted_run_ends_with_the_weights_of_one_that_was_not(
    tmp_path: Path, kind: str, optimizer: dict[str, Any], stops: tuple[int, ...]
) -> None:
    average = {"kind": kind, "start_epoch": 2, "decay": 0.8}
    recipe = recipe_of(**EVERYTHING, optim=optimizer, average=average)
    whole, cut = job_of(recipe, tmp_path / "whole"), job_of(recipe, tmp_path / "cut")
    train(whole)
    for stop in stops:
        with pytest.raises(StoppedError):
            train(cut, stop=stop)
        assert not (cut.run / FINAL).exists()
    train(cut)
    assert same(final(cut), final(whole))
    assert {step for step, _ in list_checkpoints(cut.run / CHECKPOINTS)} == {2, 4, 6, 8}
    for file in ("model", "optimizer", "companions"):
        assert same(checkpoint_of(cut, LAST, file), checkpoint_of(whole, LAST, file)), file


@pytest.mark.parametrize("kind", ["uniform", "ema"])
def test_a_run_resumed_after_its_last_step_only_finishes_the_average(
    tmp_path: Path, kind: str
) -> None:
    job = job_of(recipe_of(average={"kind": kind}), tmp_path)
    train(job)
    weights = final(job)
    (job.run / FINAL).unlink()
    state = train(job)
    assert state.step == LAST
    assert same(final(job), weights)


def test_uniform_average_is_the_mean_of_the_epochs_with_statistics_of_its_own(
    tmp_path: Path,
) -> None:
    job = job_of(recipe_of(average={"kind": "uniform", "start_epoch": 3}), tmp_path)
    state = train(job)
    ends = [checkpoint_of(job, 3 * STEPS), checkpoint_of(job, 4 * STEPS)]
    weights = final(job)
    for name, _ in state.model.named_parameters():
        expected = torch.stack([end[name].double() for end in ends]).mean(dim=0)
        torch.testing.assert_close(weights[name].double(), expected, rtol=1e-6, atol=1e-7)
    counts = {n: int(t) for n, t in weights.items() if n.endswith("num_batches_tracked")}
    assert set(counts.values()) == {STEPS}
    assert all(int(ends[1][name]) == LAST for name in counts)
    changed = [
        n for n in weights if "running_mean" in n and not torch.equal(weights[n], ends[1][n])
    ]
    assert len(changed) == len(counts)


def test_exponential_average_is_what_the_run_leaves_behind(tmp_path: Path) -> None:
    average = {"kind": "ema", "start_epoch": 1, "decay": 0.6}
    job = job_of(recipe_of(average=average, train={"checkpoint_epochs": 0.5}), tmp_path)
    assert job.estimation_steps == 0
    train(job)
    expected = checkpoint_of(job, 1)
    for step in range(2, LAST + 1):
        now = checkpoint_of(job, step)
        expected = {n: 0.6 * t.double() + 0.4 * now[n].double() for n, t in expected.items()}
    for name, tensor in final(job).items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-4, atol=1e-6)


def test_blocks_train_from_the_epoch_that_opens_them(tmp_path: Path) -> None:
    unfreeze = {"start": 2, "every": 2, "at_epoch0": True}
    job = job_of(recipe_of(unfreeze=unfreeze, optim={"name": "adam"}), tmp_path)
    start = build_state(job, torch.device("cpu")).model.state_dict()
    train(job)
    for epoch, first_open in [(1, 10), (2, 10), (3, 9), (4, 9)]:
        weights = checkpoint_of(job, epoch * STEPS)
        moved = {n for n in start if n in weights and not torch.equal(weights[n], start[n])}
        slots = {n.partition("/")[2] for n in checkpoint_of(job, epoch * STEPS, "optimizer")}
        assert blocks_of(moved) == blocks_of(slots) == set(range(first_open, 12))
        assert any("patch_embed" in name for name in moved)
        assert any(name.startswith("heads.") for name in moved)


def test_frozen_parts_stay_also_when_their_block_opens(tmp_path: Path) -> None:
    frozen = ("patch_embed", "blocks.11.mlp")
    recipe = recipe_of(
        optim={"name": "sgd", "nesterov": True, "freeze": list(frozen), "grad_clip": 1.0},
        unfreeze={"start": 1, "every": 1},
    )
    job = job_of(recipe, tmp_path)
    start = build_state(job, torch.device("cpu"))
    assert all(group["nesterov"] for group in start.optimizer.param_groups)
    before = {name: p.detach().clone() for name, p in start.model.named_parameters()}
    after = dict(train(job).model.named_parameters())
    kept = {name for name in before if torch.equal(before[name], after[name])}
    assert {n for n in before if any(part in n for part in frozen)} <= kept
    assert "transformer.trunk.blocks.11.attn.qkv.weight" not in kept
    assert all(after[n].grad is None for n in before if any(part in n for part in frozen))


def test_margins_and_centers_of_the_recipe_reach_loss_and_checkpoint(tmp_path: Path) -> None:
    loss = {
        "id_loss": "arcface",
        "id_margin": 0.2,
        "id_scale": 8.0,
        "center_weight": 0.05,
        "across_workers": True,
    }
    job = job_of(recipe_of(loss=loss), tmp_path)
    state = train(job)
    assert isinstance(state.loss, ReidLoss)
    assert state.loss.product is not None
    assert (state.loss.product.margin, state.loss.product.scale) == (0.2, 8.0)
    assert state.loss.triplet.across_workers
    assert [m.cosine for m in state.model.modules() if isinstance(m, IdentityHead)] == [True] * 2
    centers = {n: t for n, t in checkpoint_of(job, LAST, "companions").items() if "centers" in n}
    assert len(centers) == 2
    assert all(t.shape == (IDENTITIES, 192) and t.abs().sum() > 0 for t in centers.values())
    rows = json.loads((job.run / "metrics" / f"steps-{LAST:08d}.json").read_text())
    assert {"loss/id", "loss/triplet", "loss/center"} <= rows[-1].keys()


@pytest.mark.parametrize(
    ("model", "sections", "says"),
    [
        (MODEL, {"optim": {"freeze": ["blokcs"]}}, "optim.freeze=['blokcs']: LATransformer has no"),
        (
            MODEL,
            {"optim": {"freeze": ["transformer", "heads"]}},
            "optim.freeze=['transformer', 'heads'] leaves no parameter",
        ),
        (
            MODEL,
            {
                "optim": {"freeze": ["embed", "cls_token", "norm", "heads"]},
                "unfreeze": {"start": 1, "at_epoch0": False},
            },
            "leave no parameter to train in the first epoch",
        ),
        (
            {"name": "levit_s"},
            {"unfreeze": {"start": 2}},
            "unfreeze.start=2: LEViTSmall has no transformer branch",
        ),
        (
            MODEL | {"triplet_on": None},
            {"loss": {"center_weight": 0.1}},
            "loss.center_weight=0.1: LATransformer has no metric term",
        ),
        (
            MODEL | {"triplet_on": None},
            {"loss": {"id_weight": 0.0}},
            "loss: every loss term has weight 0",
        ),
    ],
)
def test_what_the_model_does_not_have_is_one_line(
    tmp_path: Path, model: dict[str, Any], sections: dict[str, dict[str, Any]], says: str
) -> None:
    job = job_of(recipe_of(model, input={"image_size": [128, 128]}, **sections), tmp_path)
    with torch.device("meta"):
        network = job.card.create_model()
    with pytest.raises(UserError) as refused:
        trained_parts(job.recipe, network)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)
