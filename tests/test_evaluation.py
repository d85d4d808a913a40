"""Every protocol from embeddings to figures, against one query and one row at a time."""

import numpy as np
import pyarrow as pa
import pytest

from pipelines.errors import UserError
from pipelines.retrieval import EmbeddingSet, Settings, describe_protocol, evaluate, settings_of
from pipelines.retrieval.figures import shares
from pipelines.retrieval.protocol import find_protocol
from tests.embedding_files import embedding_set, embedding_table, random_table, sign_vectors
from tests.slow_evaluation import normal, own, right, single_images, slow_figures, slow_lists

# vehicleid


def test_every_draw_has_one_gallery_image_an_identity_and_asks_with_the_others(tmp_path):
    embeddings = embedding_set(tmp_path, single_images(0))
    settings = settings_of(embeddings.rows, Settings(protocol="vehicleid", draws=6))
    assert len(settings) == 6
    people = set(embeddings.rows["identity"].to_pylist())
    drawn = set()
    for setting in settings:
        named = setting.gallery["identity"].to_pylist()
        assert len(named) == len(set(named)) == len(people)
        asked = {*setting.queries["key"].to_pylist(), *setting.gallery["key"].to_pylist()}
        assert asked == {
            row["key"]
            for row in embeddings.rows.to_pylist()
            if embeddings.rows["identity"].to_pylist().count(row["identity"]) > 1
            or row["key"] in setting.gallery["key"].to_pylist()
        }
        drawn.add(tuple(sorted(setting.gallery["key"].to_pylist())))
    assert len(drawn) == 6


def test_vehicleid_is_the_mean_over_its_draws(tmp_path):
    embeddings = embedding_set(tmp_path, single_images(1))
    how = Settings(protocol="vehicleid", draws=5, resamples=50)
    found = evaluate(embeddings, how)
    singles = []
    for setting in settings_of(embeddings.rows, how):
        lists = slow_lists(
            embeddings, setting.query_index, setting.gallery_index, good=right, out=own
        )
        singles.append(slow_figures(lists.values()))
    for name, value in found.metrics.items():
        single = [one[name] for one in singles]
        assert value == pytest.approx(np.mean(single), abs=1e-9), name
        assert found.spread[name] == pytest.approx(np.std(single), abs=1e-9), name
    assert found.spread["R1"] > 0
    assert found.protocol["draws"] == 5
    assert "mean of 5 draws" in describe_protocol(found.protocol)
    first = evaluate(embeddings, Settings(protocol="vehicleid", draws=1))
    assert first.spread == {}
    assert first.metrics["R1"] == pytest.approx(singles[0]["R1"])
    low, high = found.intervals["R1"]
    assert low < first.metrics["R1"] < high
    # a query has one right answer: half of what the rank takes is lost, unless it is the first
    assert found.metrics["mAP"] == pytest.approx(
        2 * found.metrics["mAP_trapezoid"] - found.metrics["R1"]
    )


def test_draws_go_by_seed_and_not_by_the_order_of_rows(tmp_path):
    table = single_images(2)
    how = Settings(protocol="vehicleid", draws=3, resamples=0)
    found = evaluate(embedding_set(tmp_path, table), how).metrics
    shuffled = table.take(np.random.default_rng(0).permutation(len(table)))
    assert evaluate(embedding_set(tmp_path, shuffled), how).metrics == pytest.approx(found)
    other = Settings(protocol="vehicleid", draws=3, resamples=0, seed=1)
    assert evaluate(embedding_set(tmp_path, table), other).metrics != pytest.approx(found)


def test_distractors_and_unnamed_images_of_a_draw(tmp_path):
    """A distractor is in every gallery, junk in none; an image of nobody is asked for nobody."""
    rows = [
        ("a1", "a", "normal"), ("a2", "a", "normal"), ("b1", "b", "normal"), ("b2", "b", "normal"),
        ("d", "a", "distractor"), ("j", "a", "junk"), ("n", None, "normal"),
    ]  # fmt: skip
    key, identity, role = zip(*rows, strict=True)
    table = embedding_table(
        sign_vectors(np.random.default_rng(0), 7), identity=identity, role=role, key=key
    )
    embeddings = embedding_set(tmp_path, table)
    how = Settings(protocol="vehicleid", draws=8)
    for setting in settings_of(embeddings.rows, how):
        keys = set(setting.gallery["key"].to_pylist())
        assert "d" in keys
        assert len(keys & {"a1", "a2"}) == len(keys & {"b1", "b2"}) == 1
        assert not keys & {"j", "n"}
        assert len(setting.queries) == 2
        assert setting.judgement.dropped == {"identity_unknown": 1}
    protocol = evaluate(embeddings, how).protocol
    assert (protocol["distractors"], protocol["junk_removed"]) == (1, 1)


@pytest.mark.parametrize("protocol", ["vehicleid", "leave_one_out"])
def test_identities_of_one_image_leave_nobody_to_ask(tmp_path, protocol):
    table = embedding_table(np.eye(5, dtype=np.float32), identity=list("abcde"))
    with pytest.raises(UserError, match=r"no identity has a second image|find only themselves"):
        evaluate(embedding_set(tmp_path, table), Settings(protocol=protocol))


# leave_one_out


@pytest.mark.parametrize("seed", range(3))
def test_leave_one_out_asks_with_every_image_for_all_others(tmp_path, seed):
    embeddings = embedding_set(tmp_path, single_images(seed, identities=6, count=50))
    found = evaluate(embeddings, Settings(protocol="leave_one_out", resamples=0))
    everyone = range(len(embeddings))
    lists = slow_lists(embeddings, everyone, everyone, good=right, out=own)
    assert {len(order) for order in lists.values()} == {len(embeddings) - 1}
    assert found.metrics == pytest.approx(slow_figures(lists.values(), (1, 2, 4, 5, 8, 10, 20)))
    assert list(found.metrics)[-7:] == ["R1", "R2", "R4", "R5", "R8", "R10", "R20"]
    assert found.protocol["gallery_size"] == len(embeddings)


def test_an_image_in_both_splits_does_not_find_its_copy(tmp_path):
    rng = np.random.default_rng(3)
    key = ["a", "b", "c", "a", "d"]
    vectors = sign_vectors(rng, 5)
    vectors[3] = vectors[0]
    table = embedding_table(
        vectors, identity=list("xxyxy"), split=["query"] * 3 + ["gallery"] * 2, key=key
    )
    embeddings = embedding_set(tmp_path, table)
    found = evaluate(embeddings, Settings(protocol="leave_one_out", resamples=0))
    assert found.protocol["queries_used"] == found.protocol["gallery_size"] == 4
    lists = slow_lists(embeddings, [0, 1, 2, 4], [0, 1, 2, 4], good=right, out=own)
    assert found.metrics["mAP"] == pytest.approx(slow_figures(lists.values())["mAP"])


def test_leave_one_out_keeps_distractors_in_the_gallery(tmp_path):
    table = embedding_table(
        np.array([[1, 0], [0.8, 0.6], [0.99, 0.1]], dtype=np.float32),
        identity=["a", "a", None],
        role=["normal", "normal", "distractor"],
    )
    found = evaluate(embedding_set(tmp_path, table), Settings(protocol="leave_one_out"))
    assert found.protocol["gallery_size"] == 3
    assert found.metrics["mAP"] == 50
    assert found.protocol["queries_dropped"] == {}


# university


@pytest.mark.parametrize(("size", "rank"), [(40, 1), (150, 2), (951, 10)])
def test_recall_at_one_percent(tmp_path, size, rank):
    assert rank == max(1, round(size / 100))
    rng = np.random.default_rng(size)
    split = ["query"] * 60 + ["gallery"] * size
    people = max(8, size // 3)
    identity = [f"b{i}" for i in [*rng.integers(0, people, 60), *(np.arange(size) % people)]]
    table = embedding_table(sign_vectors(rng, 60 + size, 16), identity=identity, split=split)
    embeddings = embedding_set(tmp_path, table)
    found = evaluate(embeddings, Settings(protocol="university", resamples=0))
    lists = slow_lists(embeddings, range(60), range(60, 60 + size), good=right, out=own)
    expected = slow_figures(lists.values(), (1, 5, 10, 20))
    share = np.mean([any(order[:rank]) for order in lists.values()])
    assert found.metrics == pytest.approx({**expected, "R1%": 100 * share})
    assert found.metrics["R1%"] == pytest.approx(found.metrics["R10"]) or rank < 10


def test_one_percent_looks_at_the_rank_it_says():
    for size, rank in ((1, 1), (40, 1), (149, 1), (150, 2), (951, 10), (51355, 514)):
        for first, expected in ((rank, 1.0), (rank + 1, 0.0)):
            plain = {"ap": [1.0], "ap_trapezoid": [1.0], "inp": [1.0], "first_hit_rank": [first]}
            found = shares(pa.table(plain), find_protocol("university"), size)
            assert found["R1%"].tolist() == [expected]


# latf_legacy


def test_the_legacy_protocol_ranks_junk_and_own_copies(tmp_path):
    table = random_table(1, queries=20, gallery=120)
    embeddings = embedding_set(tmp_path, table)
    rows = embeddings.rows.to_pylist()
    found = evaluate(embeddings, Settings(protocol="latf_legacy", resamples=0))
    lists = slow_lists(
        embeddings, range(20), range(20, 140), good=right, out=lambda query, row: False
    )
    top_ten = []
    for order in lists.values():
        hits = [place for place, is_right in enumerate(order[:10]) if is_right]
        top_ten.append(sum((i + 1) / (p + 1) for i, p in enumerate(hits)) / max(1, len(hits)))
    expected = slow_figures(lists.values())
    assert 0 in top_ten
    assert found.metrics == pytest.approx({**expected, "mAP_top10": 100 * np.mean(top_ten)})
    assert found.protocol["gallery_size"] == 120
    assert found.protocol["junk_removed"] == 0
    assert sum(row["role"] == "junk" for row in rows) > 0
    assert found.protocol["ap"]["mAP_top10"] == "top-10"
    top = found.per_query["ap_top10"].to_pylist()
    by_key = dict(zip(found.per_query["key"].to_pylist(), top, strict=True))
    copies = [i for i in lists if any(own(rows[i], r) and normal(r) for r in rows[20:])]
    assert copies
    assert all(by_key[rows[i]["key"]] > 0 for i in copies)  # each finds itself


# veri_lists


def test_lists_from_embeddings_to_figures(tmp_path):
    rng = np.random.default_rng(7)
    key = [f"q{i}" for i in range(6)] + [f"g{i}" for i in range(50)] + ["q0"]
    table = embedding_table(
        sign_vectors(rng, 57, 16),
        identity=[f"{i}" for i in rng.integers(0, 9, 57)],
        split=["query"] * 6 + ["gallery"] * 51,
        key=key,
    )
    good, junk = {}, {}
    for query in [*range(5), 77]:  # query 5 is not listed, and q77 not there
        chosen = [f"g{i}" for i in rng.permutation(50)[:14]]
        good[f"q{query}"], junk[f"q{query}"] = [*chosen[:8], "q0"], chosen[8:]
    good["q4"] = []
    strings = pa.list_(pa.string())
    lists = pa.table(
        {
            "query": list(good),
            "good": pa.array(good.values(), strings),
            "junk": pa.array(junk.values(), strings),
        }
    )
    embeddings = embedding_set(tmp_path, table)
    found = evaluate(embeddings, Settings(protocol="veri_lists", resamples=0), lists=lists)
    expected = slow_lists(
        embeddings,
        range(5),
        range(6, 57),
        good=lambda query, row: row["key"] in good[query["key"]],
        out=lambda query, row: own(query, row) or row["key"] in junk[query["key"]],
    )
    assert found.metrics == pytest.approx(slow_figures(expected.values()))
    assert found.per_query["matches"].to_pylist() == [8, 9, 9, 9]
    assert found.protocol["queries_dropped"] == {"identity_not_in_gallery": 1, "not_listed": 1}


def test_no_lists_are_kept_where_none_are_shown(tmp_path):
    """Figures during a training are taken of rows that have no address."""
    embeddings = embedding_set(tmp_path, random_table(2))
    bare = EmbeddingSet(rows=embeddings.rows.drop_columns("uri"), vectors=embeddings.vectors)
    found = evaluate(bare, Settings(shown=0))
    assert found.lists == []
    assert found.metrics == evaluate(embeddings).metrics
    assert len(evaluate(embeddings, Settings(shown=5)).lists) == 5
