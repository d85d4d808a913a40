"""Which gallery rows are right, which are taken out, and which queries are dropped for which
reason."""

import numpy as np
import pyarrow as pa
import pytest

from pipelines.errors import UserError
from pipelines.retrieval import judge
from tests.slow_ranking import is_out, is_right


def rows_of(*rows: tuple[str, str | None, str | None, str]) -> pa.Table:
    names = ("key", "identity", "camera", "role")
    columns = {name: [row[i] for row in rows] for i, name in enumerate(names)}
    return pa.table(columns, schema=pa.schema([(name, pa.string()) for name in names]))


GALLERY = rows_of(
    ("a", "x", "1", "normal"),
    ("b", "x", "2", "normal"),
    ("c", "x", None, "normal"),
    ("d", "y", "1", "normal"),
    ("e", "x", "3", "distractor"),
    ("q", "x", "2", "normal"),
)


def test_market_takes_out_the_own_camera_and_keeps_distractors():
    queries = rows_of(("q", "x", "1", "normal"), ("r", "x", None, "normal"))
    market = judge(queries, GALLERY, protocol="market")
    assert market.good.rows_of(0).tolist() == [1, 2]
    assert market.removed.rows_of(0).tolist() == [0, 5]
    # an unknown camera equals no camera, not even another unknown one
    assert market.good.rows_of(1).tolist() == [0, 1, 2, 5]
    assert market.removed.rows_of(1).tolist() == []
    anywhere = judge(queries, GALLERY, protocol="any_camera")
    assert anywhere.good.rows_of(0).tolist() == [0, 1, 2]
    assert anywhere.removed.rows_of(0).tolist() == [5]


def test_the_legacy_protocol_takes_out_nothing():
    queries = rows_of(("q", "x", "2", "normal"))
    legacy = judge(queries, GALLERY, protocol="latf_legacy")
    assert legacy.good.rows_of(0).tolist() == [0, 1, 2, 5]
    assert legacy.removed.rows_of(0).tolist() == []


def test_an_image_never_finds_itself_under_another_identity():
    queries = rows_of(("q", "x", "1", "normal"))
    gallery = rows_of(("q", "y", "2", "normal"), ("a", "x", "2", "normal"))
    judged = judge(queries, gallery, protocol="market")
    assert judged.good.rows_of(0).tolist() == [1]
    assert judged.removed.rows_of(0).tolist() == [0]


@pytest.mark.parametrize("protocol", ["market", "any_camera", "latf_legacy"])
@pytest.mark.parametrize("seed", range(6))
def test_judgements_equal_the_rules_one_pair_at_a_time(seed, protocol):
    rng = np.random.default_rng(seed)

    def draw(count: int, prefix: str) -> pa.Table:
        return rows_of(
            *(
                (
                    f"{prefix if rng.random() < 0.8 else 'both'}{i}",
                    rng.choice(["x", "y", "z", None]),
                    rng.choice(["1", "2", None]),
                    rng.choice(["normal", "normal", "distractor", "junk"]),
                )
                for i in range(count)
            )
        )

    queries, gallery = draw(25, "q"), draw(30, "g")
    kept = gallery.filter(pa.array([r["role"] != "junk" for r in gallery.to_pylist()]))
    gallery = gallery if protocol == "latf_legacy" else kept
    judged = judge(queries, gallery, protocol=protocol)
    used = set(judged.used.tolist())
    rows = gallery.to_pylist()
    for number, query in enumerate(queries.to_pylist()):
        out = [j for j, row in enumerate(rows) if is_out(query, row, protocol)]
        good = [j for j, row in enumerate(rows) if is_right(query, row) and j not in out]
        assert (number in used) == (bool(good) and query["role"] == "normal")
        if number in used:
            place = judged.used.tolist().index(number)
            assert judged.good.rows_of(place).tolist() == good
            assert judged.removed.rows_of(place).tolist() == out
    assert judged.dropped.total() == len(queries) - len(used)


def lists_of(*rows: tuple[str, list[str], list[str]]) -> pa.Table:
    query, good, junk = zip(*rows, strict=True)
    names = pa.list_(pa.string())
    return pa.table(
        {"query": list(query), "good": pa.array(good, names), "junk": pa.array(junk, names)}
    )


def test_lists_say_what_is_right_whatever_the_identity():
    queries = rows_of(
        ("p", "x", "1", "normal"), ("q", "x", "1", "normal"), ("r", "x", "1", "normal")
    )
    lists = lists_of(("q", ["d", "a"], ["b", "q"]), ("p", ["a"], []), ("s", ["a"], []))
    judged = judge(queries, GALLERY, protocol="veri_lists", lists=lists)
    assert judged.used.tolist() == [0, 1]
    assert judged.dropped == {"not_listed": 1}
    assert judged.good.rows_of(0).tolist() == [0]
    assert judged.good.rows_of(1).tolist() == [0, 3]
    assert judged.removed.rows_of(1).tolist() == [1, 5]


def test_lists_and_protocols_must_fit():
    queries = rows_of(("p", "x", "1", "normal"))
    with pytest.raises(UserError, match="protocol veri_lists needs lists"):
        judge(queries, GALLERY, protocol="veri_lists")
    with pytest.raises(UserError, match="protocol market takes no lists"):
        judge(queries, GALLERY, protocol="market", lists=lists_of(("p", ["a"], [])))


def test_an_unknown_protocol_is_refused():
    rows = rows_of(("a", "x", "1", "normal"))
    with pytest.raises(UserError, match=r"evaluate\.protocol=duke .*market, any_camera"):
        judge(rows, rows, protocol="duke")
