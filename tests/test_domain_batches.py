"""Batches with as many identities of every domain: against dealing by hand, and their promises."""

from collections import Counter

import numpy as np
import pytest

from pipelines.batches import BatchPlan
from pipelines.counter_random import permutation
from pipelines.errors import UserError
from pipelines.identity_index import IdentityIndex
from pipelines.recipe_file import load_recipe

COUNTS = {
    "duke": (3, 5, 2, 9, 4, 7, 2),
    "cuhk": (2, 3, 8),
    "msmt": (4, 4, 6, 2, 2, 3, 11, 5, 2, 3, 4),
}
"""Images of the identities of every domain."""


def make_plan(identities: int = 6, images: int = 4, seed: int = 5) -> BatchPlan:
    entries = []
    for domain, counts in COUNTS.items():
        rows = np.cumsum([0, *counts])
        shard = list(COUNTS).index(domain)
        entries += [(f"{domain}/{i:02d}", shard, int(rows[i]), n) for i, n in enumerate(counts)]
    index = IdentityIndex.of(entries)
    return BatchPlan(index, seed, identities, images, sampler="domains")


class Deck:
    """One identity's images, dealt from a real deck."""

    def __init__(self, plan: BatchPlan, label: int) -> None:
        self.plan, self.label, self.shuffles, self.cards = plan, label, 0, []

    def hand(self) -> list[int]:
        count = int(self.plan.index.count_I[self.label])
        if not self.cards:
            stream = ("image deck", self.plan.seed, self.label, self.shuffles)
            self.full = permutation(count, *stream).tolist()
            self.cards, self.shuffles = list(self.full), self.shuffles + 1
        dealt = self.cards[: self.plan.images]
        self.cards = self.cards[self.plan.images :]
        while len(dealt) < self.plan.images:
            dealt += self.full[: self.plan.images - len(dealt)]
        return dealt


class Domain:
    """One domain's identities, in a queue that is drawn anew when too few are left in it."""

    def __init__(self, plan: BatchPlan, domain: str, each: int) -> None:
        self.plan, self.domain, self.each = plan, domain, each
        self.labels = [i for i, n in enumerate(plan.index.names) if n.startswith(f"{domain}/")]
        self.decks = {label: Deck(plan, label) for label in self.labels}
        self.queue: list[int] = []
        self.passes = 0

    def next(self) -> list[tuple[int, list[int]]]:
        if len(self.queue) < self.each:
            stream = ("domain order", self.plan.seed, self.domain, self.passes)
            self.queue = [self.labels[i] for i in permutation(len(self.labels), *stream)]
            self.hands = {label: deck.hand() for label, deck in self.decks.items()}
            self.passes += 1
        taken, self.queue = self.queue[: self.each], self.queue[self.each :]
        return [(label, self.hands[label]) for label in taken]


def slow_batches(plan: BatchPlan, steps: int) -> list[list[tuple[int, int, int]]]:
    """(shard, row, label) of the steps from the first one on."""
    each = plan.identities // len(COUNTS)
    domains = [Domain(plan, domain, each) for domain in sorted(COUNTS)]
    batches = []
    for _ in range(steps):
        taken = [domain.next() for domain in domains]
        batch = []
        for turn in range(each):
            for of_domain in taken:
                label, images = of_domain[turn]
                first = int(plan.index.first_row_I[label])
                shard = int(plan.index.shard_I[label])
                batch += [(shard, first + image, label) for image in images]
        batches.append(batch)
    return batches


def rows(plan: BatchPlan, step: int) -> list[tuple[int, int, int]]:
    found = plan.rows(step)
    columns = (found.shard_B, found.row_B, found.label_B)
    return list(zip(*(column.tolist() for column in columns), strict=True))


@pytest.mark.parametrize(("identities", "images"), [(6, 4), (3, 2), (9, 3)])
def test_plan_equals_dealing_domain_by_domain(identities: int, images: int) -> None:
    plan = make_plan(identities, images)
    expected = slow_batches(plan, 60)
    assert [rows(plan, step) for step in range(60)] == expected
    later = make_plan(identities, images)  # nothing is carried along: any step by itself
    assert rows(later, 41) == expected[41]


def test_every_batch_and_every_rank_has_as_many_identities_of_every_domain() -> None:
    plan = make_plan(identities=6, images=2)
    for step in range(40):
        whole = plan.rows(step)
        labels = list(dict.fromkeys(whole.label_B.tolist()))
        assert whole.label_B.tolist() == [label for label in labels for _ in range(2)]
        assert Counter(plan.index.domain_I[labels].tolist()) == {0: 2, 1: 2, 2: 2}
        ranks = [whole.of_rank(rank, 2) for rank in range(2)]
        for name in ("shard_B", "row_B", "label_B"):
            parts = [getattr(part, name) for part in ranks]
            assert np.array_equal(np.concatenate(parts), getattr(whole, name))
        for part in ranks:
            assert set(plan.index.domain_I[part.label_B].tolist()) == {0, 1, 2}


def test_a_smaller_domain_comes_round_more_often_and_all_images_are_shown() -> None:
    plan = make_plan(identities=3, images=2)
    shown: Counter[str] = Counter()
    seen = set()
    for step in range(11 * 12):
        found = rows(plan, step)
        seen.update((shard, row) for shard, row, _ in found)
        shown.update({plan.index.names[label] for _, _, label in found})
    assert len(seen) == sum(map(sum, COUNTS.values()))
    for domain, counts in COUNTS.items():
        times = [shown[f"{domain}/{i:02d}"] for i in range(len(counts))]
        assert sum(times) == 11 * 12
        assert max(times) - min(times) <= 1


def test_domains_of_the_index() -> None:
    index = make_plan().index
    assert index.domains == ("cuhk", "duke", "msmt")
    assert [index.domains[i] for i in index.domain_I] == [n.split("/")[0] for n in index.names]
    assert str(index) == "21 identities of 3 domains (cuhk 3, duke 7, msmt 11)"
    kept = index.keep(index.domain_I == 2)
    assert (kept.domains, kept.domain_I.tolist()) == (("msmt",), [0] * 11)
    assert str(kept) == "11 identities of 1 domain (msmt 11)"
    assert len(IdentityIndex.of([]).domains) == 0


def test_the_seed_changes_every_domain() -> None:
    one, other = make_plan(seed=1).rows(4).label_B, make_plan(seed=2).rows(4).label_B
    domain_I = make_plan().index.domain_I
    for domain in range(3):
        mine = [plan[domain_I[plan] == domain].tolist() for plan in (one, other)]
        assert mine[0] != mine[1]


@pytest.mark.parametrize(
    ("identities", "says"),
    [
        (8, "batch.identities=8 is not a multiple of the 3 domains that .*; take 6 or 9"),
        (2, r"batch.identities=2 is not a multiple .* \(cuhk, duke, msmt\); take 3"),
        (12, "batch.identities=12 are 4 of every domain, and cuhk has only 3 train identities"),
        (24, "batch.identities=24, but only 21 train identities"),
    ],
)
def test_numbers_that_do_not_go_into_the_domains_are_refused(identities: int, says: str) -> None:
    with pytest.raises(UserError, match=says):
        make_plan(identities=identities)


def test_the_sampler_is_part_of_a_recipe() -> None:
    assert load_recipe("demo", ["batch.sampler=domains"]).batch.sampler == "domains"
    with pytest.raises(UserError, match="batch.sampler='domain'"):
        load_recipe("demo", ["batch.sampler=domain"])
