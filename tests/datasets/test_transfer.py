"""Sources joined into one label space, and a target: rows, names, places, refusals, blocks."""

from pathlib import Path

import pyarrow as pa
import pytest

from pipelines.batches import BatchPlan
from pipelines.console import Reporter
from pipelines.datasets import find_dataset, list_datasets, read_dataset
from pipelines.datasets.transfer import FOUR, TRANSFERS, Transfer, join_manifests
from pipelines.errors import UserError
from pipelines.identity_index import cameras_of, split_identities
from pipelines.ingest import open_blocks
from pipelines.recipe import Recipe
from pipelines.recipe_file import check_recipe, load_recipe
from pipelines.store import Store
from pipelines.training_fingerprint import training_fingerprint
from tests.conftest import TINY
from tests.datasets.layouts import MARKET, refusal, touch

FILES = {
    "Market-1501-v15.09.15": MARKET,
    "DukeMTMC-reID": {
        "bounding_box_train": ["0001_c2_f0046182.jpg", "0002_c1_f0044158.jpg"],
        "query": ["0005_c2_f0046985.jpg"],
        "bounding_box_test": [
            "0005_c3_f0046985.jpg",
            "0005_c8_f0046986.jpg",
            "7000_c1_f0000001.jpg",
        ],
    },
    "cuhk03-np": {
        "detected/bounding_box_train": ["0003_c1_21.png", "0003_c2_60.png"],
        "detected/query": ["0041_c1_355.png"],
        "detected/bounding_box_test": ["0041_c2_358.png"],
    },
    "MSMT17_V1": {
        "bounding_box_train": ["0000_c01_0000.jpg", "0001_c15_0001.jpg"],
        "query": ["0000_c03_0002.jpg"],
        "bounding_box_test": ["0000_c14_0003.jpg", "0012_c6_0004.jpg"],
    },
}
KEPT = ("uri", "identity", "view", "time", "domain", "role")


@pytest.fixture
def four(tmp_path: Path) -> Path:
    """All four datasets in one folder, under the names that they are unpacked as."""
    for place, files in FILES.items():
        touch(tmp_path / "sets" / place, files)
    return tmp_path / "sets"


def slow_join(
    sources: list[pa.Table], target: pa.Table, taken: str = "train"
) -> list[dict[str, object]]:
    """Row by row."""
    rows = [(row, "train") for table in sources for row in table.to_pylist()]
    if taken == "train":
        rows = [(row, split) for row, split in rows if row["split"] == "train"]
    else:
        rows = [(row, s) for row, s in rows if row["split"] == "train" or row["role"] == "normal"]
    rows += [(row, row["split"]) for row in target.to_pylist() if row["split"] != "train"]
    joined = []
    for row, split in rows:
        camera = None if row["camera"] is None else f"{row['domain']}/{row['camera']}"
        kept = {name: row[name] for name in KEPT}
        key = f"{row['domain']}/{row['key']}"
        joined.append({"key": key, "camera": camera, "split": split, **kept})
    return sorted(joined, key=lambda row: (row["split"], row["identity"], row["key"]))


@pytest.mark.parametrize("taken", ["train", "all"])
@pytest.mark.parametrize("name", TRANSFERS)
def test_a_protocol_by_name_is_the_datasets_joined_row_by_row(
    name: str, taken: str, four: Path
) -> None:
    plan, _ = TRANSFERS[name]
    manifest = read_dataset(name, str(four), Transfer(source_images=taken))
    expected = slow_join(
        [read_dataset(source, str(four)) for source in plan.sources],
        read_dataset(plan.target, str(four)),
        taken,
    )
    assert manifest.select(list(expected[0])).to_pylist() == expected
    base = plan.target.partition(":")[0]
    train = [row for row in expected if row["split"] == "train"]
    assert {row["domain"] for row in train} == {s.partition(":")[0] for s in plan.sources}
    assert {row["domain"] for row in expected if row["split"] != "train"} == {base}


def test_all_images_of_a_source_are_those_of_somebody(four: Path) -> None:
    manifest = read_dataset("market1501_to_dukemtmc", str(four), Transfer(source_images="all"))
    train = [row for row in manifest.to_pylist() if row["split"] == "train"]
    assert {row["identity"] for row in train} == {f"market1501/000{n}" for n in (2, 3, 4)}
    assert {row["role"] for row in train} == {"normal"}
    tested = [row["role"] for row in manifest.to_pylist() if row["split"] == "gallery"]
    assert sorted(tested) == ["distractor", "normal", "normal"]


def test_protocols_by_name_and_their_label_spaces() -> None:
    identities = {
        name: list_datasets()[name].variants[""].counts["train"].identities for name in TRANSFERS
    }
    assert identities == {
        "market1501_to_dukemtmc": 751,
        "dukemtmc_to_market1501": 702,
        "msmt17_to_market1501": 1041,
        "without_market1501": 2510,
        "without_dukemtmc": 2559,
        "without_msmt17": 2220,
        "without_cuhk03": 2494,
    }
    for name, (plan, _) in TRANSFERS.items():
        dataset, (target, variant) = list_datasets()[name], find_dataset(plan.target)
        assert (dataset.protocol, plan.source_images) == (target.protocol, "train")
        said, tested = dataset.variants[""], target.variants[variant]
        for split in ("query", "gallery"):
            assert said.counts[split] == tested.counts[split]
        assert (said.junk, said.distractors) == (tested.junk, tested.distractors)
        assert ("withdrawn" in dataset.terms) == ("dukemtmc" in [*plan.sources, plan.target])
        if name.startswith("without_"):
            assert {*plan.sources, plan.target} - {"market1501"} <= set(FOUR)
            assert len(plan.sources) == 3
    assert list_datasets()["without_cuhk03"].variants[""].counts["train"].images == (
        12_936 + 16_522 + 32_621
    )


def test_any_sources_to_any_target_each_at_its_place(four: Path, tmp_path: Path) -> None:
    own = tmp_path / "shop.csv"
    lines = ["uri,identity,camera,split,domain"]
    lines += [f"{n}.jpg,7,{'c1' if n else ''},train,shop" for n in range(2)]
    lines += ["q.jpg,8,c1,query,shop", "g.jpg,8,c2,gallery,shop"]
    lines += ["query/0003_c1s6_015971_00.jpg,9,c1,train,yard"]
    own.write_text("\n".join(lines) + "\n")
    said = Transfer(
        sources=("table", "msmt17:trainval"),
        target="market1501",
        roots={"table": str(own), "msmt17": str(four / "MSMT17_V1")},
    )
    manifest = read_dataset("transfer", str(four), said)
    sources = [
        read_dataset("table", str(own)),
        read_dataset("msmt17", str(four / "MSMT17_V1")),
    ]
    expected = slow_join(sources, read_dataset("market1501", str(four)))
    assert manifest.select(list(expected[0])).to_pylist() == expected
    cameras = {row["key"]: row["camera"] for row in expected}
    assert cameras["shop/0.jpg"] is None
    assert cameras["shop/1.jpg"] == "shop/c1"
    assert "yard/query/0003_c1s6_015971_00.jpg" in cameras
    assert "market1501/query/0003_c1s6_015971_00.jpg" in cameras


def transfer_refusal(name: str, said: Transfer, root: Path | str | None = "/nowhere") -> str:
    with pytest.raises(UserError) as refused:
        read_dataset(name, None if root is None else str(root), said)
    text = str(refused.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("name", "said", "says"),
    [
        ("transfer", {}, "dataset=transfer needs data.sources=[NAME,...]"),
        ("transfer", {"sources": ("market1501",)}, "dataset=transfer needs data.target=NAME"),
        ("transfer", {"target": "market1501"}, "dataset=transfer needs data.sources"),
        ("market1501", {"target": "msmt17"}, "data.target is for dataset=transfer, and dataset=ma"),
        (
            "without_cuhk03",
            {"sources": ("market1501",)},
            "data.sources is for dataset=transfer, and dataset=without_cuhk03",
        ),
        ("market1501", {"roots": {"market1501": "/a"}}, "give its place as data.root"),
        ("table", {"source_images": "all"}, "data.source_images is for data from one dataset to"),
        (
            "transfer",
            {"sources": ("market1501", "market1501:500k"), "target": "msmt17"},
            "market1501 is among the sources twice",
        ),
        (
            "transfer",
            {"sources": ("market1501", "cuhk03:labeled"), "target": "cuhk03:detected"},
            "cuhk03 is a source and the target",
        ),
        (
            "transfer",
            {"sources": ("market1501", "without_cuhk03"), "target": "cuhk03"},
            "without_cuhk03 is joined itself",
        ),
        (
            "transfer",
            {"sources": ("market1501", "mmst17"), "target": "cuhk03"},
            "unknown dataset 'mmst17'; did you mean msmt17?",
        ),
        (
            "transfer",
            {"sources": ("market1501", "msmt17:val"), "target": "cuhk03"},
            "no variant 'val'; there are msmt17:trainval, msmt17:train",
        ),
        (
            "without_cuhk03",
            {"roots": {"msmt17:trainval": "/a"}},
            "data.roots.msmt17:trainval: dataset=without_cuhk03 joins market1501, dukemtmc, ms",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(
    name: str, said: dict[str, object], says: str
) -> None:
    assert says in transfer_refusal(name, Transfer(**said))


def test_every_dataset_must_be_somewhere(four: Path) -> None:
    said = Transfer(roots={"market1501": str(four)})
    text = transfer_refusal("market1501_to_dukemtmc", said, None)
    assert "where is dukemtmc? Give data.roots.dukemtmc=PATH, or data.root=PATH" in text
    said = Transfer(roots={"dukemtmc": str(four / "gone")})
    text = transfer_refusal("market1501_to_dukemtmc", said, four)
    assert text.startswith(f"{four / 'gone'}: no such folder")


def test_tables_of_the_same_domain_are_not_joined(four: Path) -> None:
    market, duke, cuhk = (
        read_dataset(name, str(four)) for name in ("market1501", "dukemtmc", "cuhk03")
    )
    for sources, target, says in (
        ([market, duke, market], cuhk, "market1501 is among the sources twice"),
        ([market, duke], duke, "dukemtmc is a source and the target"),
        ([], duke, "no source to train on"),
    ):
        with pytest.raises(UserError, match=says):
            join_manifests(sources, target, source_images="train")


def test_a_domain_has_no_slash(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_text("uri,identity,domain\na.jpg,1,shop/2\nb.jpg,2,shop/2\n")
    text = refusal("table", path)
    assert text.startswith(f"{path}: the domain 'shop/2' holds a slash")


SETTINGS = (
    "dataset=transfer",
    "data.sources=[market1501,msmt17:trainval]",
    "data.target=cuhk03:detected",
    "data.roots.market1501=/a",
)


def test_a_recipe_names_sources_and_a_target() -> None:
    recipe = load_recipe("demo", SETTINGS)
    assert recipe.data.sources == ("market1501", "msmt17:trainval")
    assert (recipe.data.target, recipe.data.roots) == ("cuhk03:detected", {"market1501": "/a"})
    assert check_recipe(recipe.to_dict(), "copy") == recipe
    assert load_recipe("demo", ["dataset=cuhk03:labeled"]).title == "demo-cuhk03-labeled"
    with pytest.raises(UserError, match="data.source_images='test'"):
        load_recipe("demo", [*SETTINGS, "data.source_images=test"])


@pytest.mark.parametrize(
    "override", ["data.sources=[msmt17]", "data.roots.market1501=/a", "data.source_images=all"]
)
def test_a_recipe_of_one_dataset_joins_nothing(override: str, four: Path, tmp_path: Path) -> None:
    recipe = load_recipe("demo", ["dataset=market1501", f"data.root={four}", override])
    with pytest.raises(UserError, match=override.partition("=")[0].removesuffix(".market1501")):
        open_blocks(recipe, Store.open(str(tmp_path / "store")), Reporter())
    assert not (tmp_path / "store" / "blocks").exists()


def test_real_images_of_two_datasets(data_root: Path) -> None:
    said = Transfer(
        sources=("market1501",),
        target="pku_reid",
        source_images="all",
        roots={"pku_reid": str(data_root / "pku-reid-col780")},
    )
    manifest = read_dataset("transfer", str(data_root), said)
    rows = manifest.to_pylist()
    train = [row for row in rows if row["split"] == "train"]
    # of the 19,732 gallery images 3,819 are junk and 2,798 are distractors
    assert len(train) == 12_936 + 3_368 + 19_732 - 3_819 - 2_798
    assert len({row["identity"] for row in train}) == 751 + 750
    assert {row["domain"] for row in rows if row["split"] != "train"} == {"pku_reid"}


def joined_recipe(root: Path, *overrides: str) -> Recipe:
    return load_recipe(
        "demo",
        [
            *TINY,
            "dataset=transfer",
            "data.sources=[market1501,cuhk03:detected]",
            "data.target=dukemtmc",
            f"data.root={root}",
            "data.min_images=2",
            "data.rows_per_shard=1",
            *overrides,
        ],
    )


@pytest.mark.ray
def test_two_sources_and_a_target_become_blocks(
    ray_session: None, four: Path, tmp_path: Path
) -> None:
    from PIL import Image

    files = sorted(path for path in four.rglob("*.*") if path.is_file())
    for number, path in enumerate(files):
        Image.new("RGB", (16, 32), (number, 90, 255 - number)).save(path)
    store = Store.open(str(tmp_path / "store"))
    recipe = joined_recipe(four)
    blocks = open_blocks(recipe, store, Reporter())
    assert blocks.folder.name.startswith("transfer-")
    assert blocks.manifest["images"] == {"train": 4, "query": 1, "gallery": 3}
    train, held = split_identities(blocks, min_images=2, holdout=0.0)
    assert (train.names, len(held)) == (("cuhk03/0003", "market1501/0002"), 0)
    assert (train.domains, train.domain_I.tolist()) == (("cuhk03", "market1501"), [0, 1])
    assert str(train) == "2 identities of 2 domains (cuhk03 1, market1501 1)"
    cameras = ("cuhk03/c1", "cuhk03/c2", "market1501/c1", "market1501/c2")
    assert cameras_of(blocks, train) == cameras
    plan = BatchPlan(train, 1, identities=2, images=2, sampler="domains")
    assert plan.rows(5).label_B.tolist() == [0, 0, 1, 1]

    moved = joined_recipe(
        tmp_path, f"data.roots={{market1501: {four}, cuhk03: {four}, dukemtmc: {four}}}"
    )
    again = open_blocks(moved, store, Reporter())
    assert again.folder == blocks.folder
    assert training_fingerprint(moved, again) == training_fingerprint(recipe, blocks)
    other = joined_recipe(four, "data.source_images=all")
    assert training_fingerprint(other, open_blocks(other, store, Reporter())) != (
        training_fingerprint(recipe, blocks)
    )
