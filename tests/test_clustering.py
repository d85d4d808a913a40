"""NMI of k-means clusters, against its definition."""

import math
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score

from pipelines.clustering import nmi_percent


def clusters(seed: int, *, people: int = 8, each: int = 25, noise: float) -> tuple:
    """Unit vectors around a center an identity, in no order, and their identities."""
    rng = np.random.default_rng(seed)
    centers = np.linalg.qr(rng.standard_normal((16, 16)))[0][:people]
    labels = rng.permutation(np.repeat(np.arange(people), each))
    vectors = centers[labels] + noise * rng.standard_normal((len(labels), 16))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32), labels


def names(labels) -> pa.ChunkedArray:
    half = len(labels) // 2
    return pa.chunked_array([[f"p{n}" for n in labels[:half]], [f"p{n}" for n in labels[half:]]])


def slow_nmi(one, other) -> float:
    """2 I(X; Y) / (H(X) + H(Y))."""
    count = len(one)

    def entropy(values) -> float:
        return -sum(n / count * math.log(n / count) for n in Counter(values).values())

    joint = entropy(list(zip(one, other, strict=True)))
    return 2 * (entropy(one) + entropy(other) - joint) / (entropy(one) + entropy(other))


@pytest.mark.parametrize("seed", range(3))
def test_groups_far_apart_are_found(seed):
    """k-means may start two centers in one group; where it does not, all agrees."""
    vectors, labels = clusters(0, people=3, noise=0.01)
    assert nmi_percent(vectors, names(labels), seed=seed) > 70
    best = max(nmi_percent(vectors, names(labels), seed=s) for s in range(8))
    assert best == pytest.approx(100)


def test_every_image_its_own_identity():
    vectors = np.eye(12, dtype=np.float32)
    assert nmi_percent(vectors, names(range(12)), seed=0) == pytest.approx(100)


def test_it_is_the_mutual_information_over_the_mean_entropy(monkeypatch):
    """Of the very clusters that were found."""
    seen = {}

    def watch(labels, found):
        seen["pair"] = (list(labels), list(found))
        return normalized_mutual_info_score(labels, found)

    monkeypatch.setattr("pipelines.clustering.normalized_mutual_info_score", watch)
    vectors, labels = clusters(1, noise=0.25)
    value = nmi_percent(vectors, names(labels), seed=0)
    given, found = seen["pair"]
    assert len(set(found)) <= 8
    assert value == pytest.approx(100 * slow_nmi(given, found))
    assert slow_nmi(given, labels.tolist()) == pytest.approx(1)
    assert 20 < value < 99


def test_the_seed_decides():
    vectors, labels = clusters(2, people=12, noise=0.3)
    values = [nmi_percent(vectors, names(labels), seed=seed) for seed in (0, 0, 1, 2, 3)]
    assert values[0] == values[1]
    assert len(set(values[1:])) > 1


def test_another_k_means_finds_about_the_same():
    vectors, labels = clusters(3, noise=0.2)
    ours = [nmi_percent(vectors, names(labels), seed=seed) for seed in range(5)]
    theirs = [
        100
        * normalized_mutual_info_score(
            labels,
            KMeans(8, init="random", n_init=1, max_iter=20, random_state=s).fit(vectors).labels_,
        )
        for s in range(5)
    ]
    assert max(ours) == pytest.approx(max(theirs), abs=3)


def test_unnamed_images_take_no_part():
    vectors, labels = clusters(4, people=4, noise=0.3)
    named = names(labels).to_pylist()
    known = [i for i in range(len(labels)) if i % 9]
    some = pa.chunked_array([[name if i % 9 else None for i, name in enumerate(named)]])
    expected = nmi_percent(vectors[known], names(labels[known]), seed=0)
    assert nmi_percent(vectors, some, seed=0) == pytest.approx(expected)
