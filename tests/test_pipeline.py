"""The whole way as a user runs it: real commands, a real Ray, kill -9 in the middle."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.errors import UserError
from pipelines.gallery import open_gallery
from tests.commands import LIMIT, REID, answer
from tests.conftest import TINY

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def reid(*args: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*REID, *map(str, args)], capture_output=True, text=True, timeout=LIMIT)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def answer_of_a_process(*args: object) -> dict[str, Any]:
    done = reid(*args, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def run_and_kill(store: Path, when: Callable[[], bool]) -> None:
    """Start the run, and kill -9 the command as soon as `when` holds."""
    command = [*REID, "demo", *TINY, "--store", str(store)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + LIMIT
    while not when():
        assert process.poll() is None, process.stdout and process.stdout.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def some(store: Path, pattern: str) -> Callable[[], bool]:
    return lambda: any(store.glob(pattern))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return answer_of_a_process("demo", *TINY, "--store", tmp_path_factory.mktemp("whole"))


def test_answer_has_what_other_programs_rely_on(finished: dict[str, Any]) -> None:
    assert {"mAP", "mAP_trapezoid", "mINP", "R1", "R5", "R10", "R20"} <= set(finished["metrics"])
    assert finished["model"] == {"name": "demo-drawn", "version": 1, "alias": "champion"}
    assert finished["skipped"] == []
    for name in ("gallery", "report", "store", "checkpoint", "embeddings"):
        assert Path(finished[name]).exists(), name
    assert finished["rows"] == len(open_gallery(finished["gallery"]))
    page = Path(finished["report"]).read_text()
    assert "data:image/" in page
    assert not re.search(r"(src|href)=.(?!data:|#)", page)


def test_second_run_does_nothing_and_says_the_same(finished: dict[str, Any]) -> None:
    before = {p: p.stat().st_mtime_ns for p in Path(finished["store"]).rglob("*.parquet")}
    again = answer_of_a_process("demo", *TINY, "--store", finished["store"])
    assert set(again["skipped"]) >= {"ingest", "train", "embed", "evaluate", "gallery", "register"}
    assert again["metrics"] == finished["metrics"]
    assert again["model"] == finished["model"]
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_stage_commands_find_what_the_run_made(finished: dict[str, Any]) -> None:
    trained = answer("train", "demo", *TINY, "--store", finished["store"])
    assert trained["skipped"] == ["train"]
    assert trained["checkpoint"] == finished["checkpoint"]
    taken = answer("evaluate", "--embeddings", finished["embeddings"])
    assert taken["metrics"] == finished["metrics"]


def test_killed_runs_end_with_the_same_numbers(finished: dict[str, Any], tmp_path: Path) -> None:
    run_and_kill(tmp_path, some(tmp_path, "blocks/*/shard-*.parquet"))
    run_and_kill(tmp_path, some(tmp_path, "runs/*/checkpoints/step-000003"))

    run_and_kill(tmp_path, some(tmp_path, "galleries/*/shard-*.faiss"))
    resumed = answer_of_a_process("demo", *TINY, "--store", tmp_path)
    assert resumed["metrics"] == finished["metrics"]
    assert sha(resumed) == sha(finished)
    assert not answer("gallery", "verify", resumed["gallery"])["problems"]


def sha(result: dict[str, Any]) -> str:
    manifest = json.loads((Path(result["checkpoint"]) / "manifest.json").read_text())
    return str(manifest["weights_sha256"])


def test_search_finds_a_gallery_image_itself(finished: dict[str, Any], tmp_path: Path) -> None:
    store = Path(finished["store"])
    image = next(store.glob("drawn/*/images/bounding_box_test/0*"))
    picture = tmp_path / "hits.png"
    values = answer(
        "search", finished["gallery"], image, "--top-k", 3, "--camera", "c1", "--picture", picture
    )
    hits = values["results"][0]["hits"]
    assert len(hits) == 3
    assert [set(hit) >= {"id", "key", "identity", "camera", "score"} for hit in hits] == [True] * 3
    keys = [
        hit["key"] for hit in answer("search", finished["gallery"], image)["results"][0]["hits"]
    ]
    assert f"bounding_box_test/{image.name}" in keys
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_search_refuses_what_it_cannot_use(finished: dict[str, Any], tmp_path: Path) -> None:
    text = tmp_path / "text.jpg"
    text.write_text("no picture")
    for image, says in ((text, "not an image"), (tmp_path / "none.jpg", "No such file")):
        with pytest.raises(UserError, match=says) as refused:
            answer("search", finished["gallery"], image)
        assert str(image) in str(refused.value)
    with pytest.raises(UserError, match="no gallery"):
        answer("search", tmp_path, text)


def test_search_refuses_a_model_of_another_dimension(
    finished: dict[str, Any], tmp_path: Path
) -> None:
    from dataclasses import replace

    from pipelines.embedder import CARD, WEIGHTS, read_card
    from pipelines.engine import save_weights

    card = read_card(Path(finished["checkpoint"]))
    other = replace(card, options={**card.options, "fusion_dim": 96})
    model = other.create_model()
    other = replace(other, embedding_dim=model.embedding_dim)
    save_weights(tmp_path / WEIGHTS, model)
    (tmp_path / CARD).write_text(json.dumps(other.to_dict()))
    image = next(Path(finished["store"]).glob("drawn/*/images/query/0*"))
    with pytest.raises(UserError, match=str(card.embedding_dim)) as refused:
        answer("search", finished["gallery"], image, "--model", tmp_path)
    assert str(other.embedding_dim) in str(refused.value)


def test_registered_version_embeds_like_the_trained_model(finished: dict[str, Any]) -> None:
    probe = """
import sys, json, numpy as np, pandas as pd, mlflow
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/demo-drawn@champion")
image = open(sys.argv[2], "rb").read()
print(json.dumps(np.asarray(model.predict(pd.DataFrame({"image": [image]})))[0].tolist()))
"""
    image = next(Path(finished["store"]).glob("drawn/*/images/query/0*"))
    done = subprocess.run(
        [sys.executable, "-c", probe, finished["tracking"], str(image)],
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert done.returncode == 0, done.stderr
    from pipelines.embedder import WEIGHTS, Embedder, read_card

    folder = Path(finished["checkpoint"])
    expected = Embedder(read_card(folder), folder / WEIGHTS).embed_files(
        [image.read_bytes()], [None]
    )
    found = torch.tensor(json.loads(done.stdout.splitlines()[-1]))
    assert torch.allclose(found, torch.from_numpy(expected[0]), atol=1e-5)


def test_tracking_has_a_run_with_nested_stages(finished: dict[str, Any]) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(finished["tracking"])
    experiment = client.get_experiment_by_name("rayreid")
    runs = client.search_runs([experiment.experiment_id])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert len(parents) == 1
    assert parents[0].data.metrics["mAP"] == pytest.approx(finished["metrics"]["mAP"])
    stages = {run.data.tags["rayreid.stage"] for run in runs if run is not parents[0]}
    assert stages == {"ingest", "train", "embed", "evaluate", "gallery", "register"}
    train = next(run for run in runs if run.data.tags["rayreid.stage"] == "train")
    losses = client.get_metric_history(train.info.run_id, "loss")
    assert [point.step for point in losses] == list(range(6))


def test_other_registry_name_does_not_train_again_and_tells_todays_alias(
    ray_session: None, finished: dict[str, Any]
) -> None:
    args = ("run", "demo", *TINY, "registry.name=rolled", "--store", finished["store"])
    named = answer(*args)
    assert named["model"] == {"name": "rolled", "version": 1, "alias": "champion"}
    assert set(named["skipped"]) >= {"ingest", "train", "embed", "evaluate"}
    assert named["checkpoint"] == finished["checkpoint"]
    assert open_gallery(named["gallery"]).info()["model"]["name"] == "rolled"
    assert open_gallery(finished["gallery"]).info()["model"]["name"] == "demo-drawn"

    newer = answer(*args, "gallery.shards=3")
    assert newer["model"] == {"name": "rolled", "version": 2, "alias": "champion"}
    assert answer("rollback", "rolled", "--store", finished["store"])["version"] == 1
    again = answer(*args, "gallery.shards=3")
    assert "train" in again["skipped"]
    assert (again["model"]["version"], again["model"]["alias"]) == (2, None)


def test_promote_and_rollback(finished: dict[str, Any]) -> None:
    promoted = answer("promote", "demo-drawn", 1, "--store", finished["store"])
    assert (promoted["version"], promoted["alias"]) == (1, "champion")
    with pytest.raises(UserError, match="no earlier champion"):
        answer("rollback", "demo-drawn", "--store", finished["store"])
