"""The batch plan: against a slow reference, and the promises it makes."""

from collections import Counter

import numpy as np
import pytest

from pipelines.augment import Augmentation, flip_and_crop
from pipelines.batches import BatchPlan, IdentityIndex
from pipelines.counter_random import permutation, uniform
from pipelines.errors import UserError

COUNTS = (3, 5, 2, 9, 4, 7, 2)


def make_plan(seed: int = 5, identities: int = 3, images: int = 4) -> BatchPlan:
    rows = np.cumsum([0, *COUNTS])
    entries = [(f"p{i}", i % 2, int(rows[i]), n) for i, n in enumerate(COUNTS)]
    return BatchPlan(IdentityIndex.of(entries), seed, identities, images)


def slow_rows(plan: BatchPlan, step: int) -> list[tuple[int, int, int]]:
    """(shard, row, label) of a step, by dealing from real decks from the beginning."""
    per_pass = len(COUNTS) // plan.identities
    pass_ = step // per_pass
    order = list(permutation(len(COUNTS), "identity order", plan.seed, pass_))
    rows = []
    for label in order[(step % per_pass) * plan.identities :][: plan.identities]:
        count, dealt = COUNTS[label], []
        shuffle, deck = -1, []
        for _ in range(pass_ + 1):
            if len(deck) == 0:
                shuffle += 1
                deck = list(permutation(count, "image deck", plan.seed, int(label), shuffle))
                full = list(deck)
            dealt, deck = deck[: plan.images], deck[plan.images :]
        again = list(full)
        while len(dealt) < plan.images:
            dealt.append(again[0])
            again = again[1:] or list(full)
        start = int(plan.index.first_row_I[label])
        rows += [(int(plan.index.shard_I[label]), start + int(i), int(label)) for i in dealt]
    return rows


@pytest.mark.parametrize("step", [0, 1, 2, 7, 30])
def test_plan_equals_dealing_from_decks(step: int) -> None:
    plan = make_plan()
    rows = plan.rows(step)
    found = list(
        zip(rows.shard_B.tolist(), rows.row_B.tolist(), rows.label_B.tolist(), strict=True)
    )
    assert found == slow_rows(plan, step)


def test_batch_has_whole_identities_and_ranks_cut_between_them() -> None:
    plan = make_plan(identities=4, images=2)
    whole = plan.rows(3)
    assert Counter(whole.label_B.tolist()).most_common() == [
        (x, 2) for x in dict.fromkeys(whole.label_B)
    ]
    parts = [whole.of_rank(rank, 2) for rank in range(2)]
    assert np.array_equal(np.concatenate([p.row_B for p in parts]), whole.row_B)
    assert not set(parts[0].label_B) & set(parts[1].label_B)


def test_every_image_is_shown_and_none_much_more_often() -> None:
    plan = make_plan()
    seen: Counter[tuple[int, int]] = Counter()
    for step in range(200):
        rows = plan.rows(step)
        seen.update(zip(rows.label_B.tolist(), rows.row_B.tolist(), strict=True))
    assert len(seen) == sum(COUNTS)
    for label, count in enumerate(COUNTS):
        shown = [n for (owner, _), n in seen.items() if owner == label]
        assert len(shown) == count
        assert max(shown) <= 2 * min(shown)


def test_shuffled_batches_are_a_pass_over_all_images_in_a_new_order_each_time() -> None:
    """Every batch of a pass is of other images, whose labels are those of their identities."""
    dealt = make_plan()
    plan = BatchPlan(dealt.index, 5, identities=3, images=3, sampler="shuffle")
    owner = {}
    for label, count in enumerate(COUNTS):
        first = int(plan.index.first_row_I[label])
        shard = int(plan.index.shard_I[label])
        owner |= {(shard, first + i): label for i in range(count)}
    per_pass = sum(COUNTS) // 9
    passes = []
    for pass_ in range(4):
        steps = [plan.rows(pass_ * per_pass + slot) for slot in range(per_pass)]
        rows = [
            pair for s in steps for pair in zip(s.shard_B.tolist(), s.row_B.tolist(), strict=True)
        ]
        labels = [label for s in steps for label in s.label_B.tolist()]
        assert labels == [owner[row] for row in rows]
        assert len(rows) == len(set(rows)) == per_pass * 9
        passes.append(rows)
    assert len(set(map(tuple, passes))) == 4
    assert len({row for rows in passes for row in rows}) == sum(COUNTS)
    assert plan.steps_per_epoch == 4
    with pytest.raises(UserError, match="is more than the 32 training images"):
        BatchPlan(dealt.index, 5, identities=11, images=3, sampler="shuffle")


def test_seed_changes_the_batches() -> None:
    assert not np.array_equal(make_plan(seed=1).rows(4).row_B, make_plan(seed=2).rows(4).row_B)


def test_too_few_identities_are_refused() -> None:
    with pytest.raises(UserError, match="batch.identities=8, but only 7"):
        make_plan(identities=8)


def slow_flip_and_crop(image: np.ndarray, pad: int, flip: bool, top: int, left: int) -> np.ndarray:
    flipped = image[:, ::-1] if flip else image
    padded = np.pad(flipped, ((pad, pad), (pad, pad), (0, 0)))
    return padded[top : top + image.shape[0], left : left + image.shape[1]]


def test_flip_and_crop_equals_padding_and_slicing() -> None:
    images = np.random.default_rng(0).integers(1, 256, (40, 12, 6, 3), dtype=np.uint8)
    positions = np.arange(40) + 100
    out = flip_and_crop(images, Augmentation(flip=0.5, pad=3), 9, 4, positions)
    flips = uniform("flip", 9, 4, positions) < 0.5
    assert 0 < flips.sum() < 40
    for i in range(40):
        top = int(uniform("crop top", 9, 4, int(positions[i])) * 7)
        left = int(uniform("crop left", 9, 4, int(positions[i])) * 7)
        assert np.array_equal(out[i], slow_flip_and_crop(images[i], 3, bool(flips[i]), top, left))


def test_augmentation_does_not_depend_on_the_neighbours() -> None:
    images = np.random.default_rng(1).integers(0, 256, (8, 10, 8, 3), dtype=np.uint8)
    setting = Augmentation(flip=0.5, pad=2)
    whole = flip_and_crop(images, setting, 1, 2, np.arange(8))
    half = flip_and_crop(images[4:], setting, 1, 2, np.arange(4, 8))
    assert np.array_equal(whole[4:], half)
