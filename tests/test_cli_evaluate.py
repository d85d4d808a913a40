"""`reid evaluate --embeddings`: what it answers, says and refuses."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner

from pipelines.cli import reid
from pipelines.embedding_parts import with_parts
from pipelines.errors import UserError
from pipelines.figures_text import figure_lines
from pipelines.retrieval import (
    PROTOCOLS,
    Expansion,
    Rerank,
    Settings,
    chosen_parts,
    evaluate,
    load_embeddings,
)
from tests.commands import answer
from tests.datasets.test_veri776 import GALLERY, QUERY, veri
from tests.embedding_files import embedding_table, random_table

NAMES = {"mAP", "mAP_trapezoid", "mINP", "R1", "R5", "R10", "R20"}
MORE = {
    "leave_one_out": {"R2", "R4", "R8", "NMI"},
    "university": {"R1%"},
    "latf_legacy": {"mAP_top10"},
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "embeddings.parquet"
    pq.write_table(random_table(1), path)
    return path


def test_the_answer_holds_figures_and_their_protocol(file: Path) -> None:
    found = answer("evaluate", "--embeddings", file)
    expected = evaluate(load_embeddings(file))
    assert set(found["metrics"]) == NAMES
    assert found["metrics"] == expected.metrics  # to the last bit: nothing is rounded
    assert found["protocol"] == expected.protocol
    assert found["protocol"]["name"] == "market"
    assert found["cmc"] == list(expected.cmc)
    assert found["intervals"] == expected.intervals
    assert found["by_camera"] == expected.by_camera
    assert found["verification"] == expected.verification


@pytest.mark.parametrize("protocol", sorted(set(PROTOCOLS) - {"veri_lists"}))
def test_the_protocol_is_an_option_or_a_key(file: Path, protocol: str) -> None:
    found = answer("evaluate", "--embeddings", file, "--protocol", protocol)
    assert set(found["metrics"]) == NAMES | MORE.get(protocol, set())
    assert found["protocol"]["name"] == protocol
    assert answer("evaluate", "--embeddings", file, f"evaluate.protocol={protocol}") == found


def test_reranking_is_an_option_or_a_key(file: Path) -> None:
    keys = ("evaluate.rerank_k1=5", "evaluate.rerank_k2=2", "evaluate.rerank_weight=0.5")
    found = answer("evaluate", "--embeddings", file, "--rerank", *keys)
    how = Settings(rerank=Rerank(k1=5, k2=2, weight=0.5))
    assert found["metrics"] == evaluate(load_embeddings(file), how).metrics
    assert found["protocol"]["rerank"] == {"k1": 5, "k2": 2, "weight": 0.5}
    assert answer("evaluate", "--embeddings", file, "evaluate.rerank=true", *keys) == found
    plain = answer("evaluate", "--embeddings", file)
    assert plain["protocol"]["rerank"] is False
    assert plain["metrics"] != found["metrics"]


def test_keys_reach_the_evaluation(file: Path) -> None:
    keys = ("expansion=3", "expansion_alpha=1", "resamples=0", "by_camera=false")
    found = answer("evaluate", "--embeddings", file, *(f"evaluate.{key}" for key in keys))
    how = Settings(expansion=Expansion(k=3, alpha=1.0), resamples=0, by_camera=False)
    assert found["metrics"] == evaluate(load_embeddings(file), how).metrics
    assert (found["intervals"], found["by_camera"]) == ({}, [])
    drawn = answer(
        "evaluate", "--embeddings", file, "--protocol", "vehicleid", "evaluate.draws=3",
        "evaluate.seed=7",
    )  # fmt: skip
    how = Settings(protocol="vehicleid", draws=3, seed=7)
    expected = evaluate(load_embeddings(file), how)
    assert (drawn["metrics"], drawn["spread"]) == (expected.metrics, expected.spread)
    assert drawn["protocol"]["draws"] == 3


def test_parts_are_chosen_by_place_or_name(tmp_path: Path, file: Path) -> None:
    parts = ("evaluate.parts=[0:16,60:64]", "evaluate.unit_parts=true")
    found = answer("evaluate", "--embeddings", file, *parts)
    how = Settings(parts=("0:16", "60:64"), unit_parts=True)
    expected = evaluate(chosen_parts(load_embeddings(file), how), how)
    assert found["metrics"] == expected.metrics
    assert found["protocol"]["embedding_dim"] == 20
    assert found["metrics"] != answer("evaluate", "--embeddings", file)["metrics"]


def test_a_gallery_on_disk_gives_the_same_figures(file: Path) -> None:
    held = answer("evaluate", "--embeddings", file)
    assert answer("evaluate", "--embeddings", file, "evaluate.hold_mb=0") == held


@pytest.mark.ray
def test_workers_give_the_same_figures(file: Path, ray_session: None) -> None:
    keys = ("evaluate.expansion=2", "--rerank")
    for more in ((), keys):
        alone = answer("evaluate", "--embeddings", file, *more)
        assert answer("evaluate", "--embeddings", file, *more, "evaluate.workers=2") == alone


def test_lists_say_who_is_right(tmp_path: Path) -> None:
    root = veri(tmp_path / "VeRi")
    (root / "gt_image.txt").write_text(f"{GALLERY[0]}\n{GALLERY[3]} {GALLERY[4]}\n")
    (root / "jk_image.txt").write_text(f"{GALLERY[1]}\n{GALLERY[2]}\n")
    names = [f"image_query/{name}" for name in QUERY] + [f"image_test/{name}" for name in GALLERY]
    vectors = torch.randn(len(names), 8, generator=torch.Generator().manual_seed(0)).numpy()
    table = embedding_table(
        vectors,
        identity=[f"veri776/{name.rpartition('/')[2][:4]}" for name in names],
        camera=[name.split("_")[-3] for name in names],
        split=["query"] * len(QUERY) + ["gallery"] * len(GALLERY),
        key=names,
    )
    file = tmp_path / "e.parquet"
    pq.write_table(table, file)
    asked = ("evaluate", "--embeddings", file, "--protocol", "veri_lists")
    found = answer(*asked, f"evaluate.lists={root}")
    unit = vectors / (vectors**2).sum(1, keepdims=True) ** 0.5
    precision = []
    for query, good, junk in ((0, {0}, {1}), (1, {3, 4}, {2})):
        order = sorted(set(range(5)) - junk, key=lambda row: -unit[query] @ unit[2 + row])
        ranks = [place for place, row in enumerate(order, start=1) if row in good]
        precision.append(sum((i + 1) / rank for i, rank in enumerate(ranks)) / len(ranks))
    assert found["metrics"]["mAP"] == pytest.approx(100 * sum(precision) / 2)
    with pytest.raises(UserError, match=r"veri_lists goes by lists .* evaluate\.lists=FOLDER$"):
        answer(*asked)
    (root / "jk_image.txt").unlink()
    with pytest.raises(UserError, match=r"jk_image\.txt: no such file"):
        answer(*asked, f"evaluate.lists={root}")


REFUSED = {
    ("demo",): "give a recipe (demo) or --embeddings, not both",
    ("demo", "evaluate.rerank=true"): "give a recipe (demo) or --embeddings, not both",
    ("evaluate.protocl=market",): "unknown key 'evaluate.protocl' (did you mean 'protocol'?)",
    ("evaluate.protocol=markt",): "evaluate.protocol='markt': input should be 'market', 'any_",
    ("evaluate.rerank_weight=2",): "evaluate.rerank_weight=2: input should be less than or equal",
    ("data.root=x",): "'data.root=x': only evaluate.KEY=VALUE means something here",
    ("--rerank", "evaluate.rerank=false"): "--rerank and evaluate.rerank=false: give one of them",
    ("--protocol", "market", "evaluate.protocol=any_camera"): "--protocol and evaluate.protocol=any"
    "_camera: give one of them",
    ("evaluate.parts=[bnneck]",): "'bnneck' is no part of these embeddings; give START:STOP "
    "between 0 and 64",
    ("evaluate.parts=[60:70]",): "'60:70' is no part of these embeddings",
    ("evaluate.lists=/lists",): "evaluate.lists=/lists is for evaluate.protocol=veri_lists alone: "
    "leave it out",
    ("--rerank", "evaluate.hold_mb=0"): "re-ranking needs the 137 gallery vectors in memory: raise "
    "evaluate.hold_mb",
}


@pytest.mark.parametrize("given", REFUSED, ids=" ".join)
def test_mistakes_are_named_in_a_line(file: Path, given: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as error:
        answer("evaluate", "--embeddings", file, *given)
    assert REFUSED[given] in str(error.value)
    assert "\n" not in str(error.value)


def test_parts_have_names_where_the_file_knows_them(file: Path) -> None:
    pq.write_table(with_parts(pq.read_table(file), (("cnn", 24), ("vit", 40))), file)
    named = answer("evaluate", "--embeddings", file, "evaluate.parts=[vit]")
    assert named["metrics"] == answer(
        "evaluate", "--embeddings", file, "evaluate.parts=[24:64]"
    )["metrics"]  # fmt: skip
    with pytest.raises(UserError, match="'vitt' is no part of these embeddings; give one of cnn, "):
        answer("evaluate", "--embeddings", file, "evaluate.parts=[vitt]")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(file: Path) -> None:
    with pytest.raises(UserError, match=r"evaluate\.device=cuda, but .* no GPU: take auto or cpu"):
        answer("evaluate", "--embeddings", file, "evaluate.device=cuda")
    on_cpu = answer("evaluate", "--embeddings", file, "evaluate.device=cpu")
    assert answer("evaluate", "--embeddings", file, "evaluate.device=auto") == on_cpu


def test_neither_recipe_nor_embeddings() -> None:
    with pytest.raises(UserError, match="give a recipe or --embeddings FILE"):
        answer("evaluate", "--rerank")


def test_people_read_figures_with_their_protocol(file: Path) -> None:
    done = CliRunner().invoke(reid, ["evaluate", "--embeddings", str(file)])
    assert done.exit_code == 0
    found = answer("evaluate", "--embeddings", file)
    lines = done.stderr.splitlines()
    metrics = found["metrics"]
    assert lines[0].startswith(f"mAP {metrics['mAP']:.2f}  R1 {metrics['R1']:.2f}  R5 ")
    assert lines[0].endswith(f"mAP_trapezoid {metrics['mAP_trapezoid']:.2f}  (percent)")
    low, high = found["intervals"]["mAP"]
    assert f"mAP {low:.2f} to {high:.2f}" in lines[1]
    point = found["verification"]["at"]["1e-02"]
    assert f"{100 * point['true_rate']:.2f} % at 1 % false alarms" in lines[2]
    assert f"{found['verification']['open_set']['threshold']:.4f}" in lines[3]
    hardest = min(found["by_camera"], key=lambda pair: pair["mAP"])
    named = f"{hardest['query_camera']} to {hardest['gallery_camera']} (mAP {hardest['mAP']:.2f})"
    assert f"hardest of {len(found['by_camera'])} camera pairs: {named}" in lines[4]
    assert lines[-1].startswith("market, cosine; mAP by step AP")
    by_name = json.loads(json.dumps(found, sort_keys=True))  # as a store gives them back
    assert list(figure_lines(by_name)) == lines


def test_people_read_of_draws_and_domains(file: Path) -> None:
    table = pq.read_table(file)
    domains = pa.array([("shop", "yard")[row % 2] for row in range(len(table))])
    pq.write_table(table.append_column("domain", domains), file)
    asked = ["evaluate", "--embeddings", str(file), "--protocol", "vehicleid"]
    lines = CliRunner().invoke(reid, asked).stderr.splitlines()
    found = answer(*asked)
    assert f"standard deviation over 10 draws: mAP {found['spread']['mAP']:.2f}, R1 " in lines[1]
    for domain in ("shop", "yard"):
        figures = found["by_domain"][domain]
        expected = f"{domain}: {figures['queries']} queries, mAP {figures['mAP']:.2f}, R1 "
        assert any(line.startswith(expected) for line in lines)
