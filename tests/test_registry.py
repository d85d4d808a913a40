"""The registry against real MLflow stores: SQLite files, and a server on loopback."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from PIL import Image

import pipelines
from pipelines.embedder import ModelCard
from pipelines.engine import save_weights
from pipelines.errors import UserError
from pipelines.registry import (
    PromotionRefusedError,
    Tracker,
    champion,
    promote,
    register_model,
    rollback,
)

ROOT = Path(pipelines.__file__).parents[1]
CARD = ModelCard(
    model="fusion_reid",
    options={
        "cnn": "resnet10t",
        "transformer": "vit_tiny_patch16_224",
        "patch_stride": 16,
        "fusion_dim": 192,
        "htm_depth": 1,
    },
    num_classes=5,
    cameras=("c1", "c2"),
    image_size=(64, 32),
    mean=(0.4, 0.5, 0.6),
    std=(0.2, 0.3, 0.4),
    interpolation="bilinear",
    flip=False,
    embedding_dim=8,
)
TAGS = {"data_fingerprint": "drawn-1", "protocol": "market1501, step AP", "gallery": "gallery-1"}

visited: list[str] = []
"""Hosts other than loopback that this process turned to while `guarded` was set."""
guarded = False


def _watch_network(event: str, arguments: tuple[Any, ...]) -> None:
    if not guarded or event not in ("socket.connect", "socket.getaddrinfo"):
        return
    address = arguments[1] if event == "socket.connect" else arguments
    host = address[0] if isinstance(address, tuple) else "unix"
    if host not in ("unix", "127.0.0.1", "localhost", "::1"):
        visited.append(str(host))


sys.addaudithook(_watch_network)


@pytest.fixture(scope="module", autouse=True)
def _surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No backend from outside, no network, and nothing left in the working directory."""
    global guarded
    empty = tmp_path_factory.mktemp("cwd")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
            patch.delenv(name, raising=False)
        patch.chdir(empty)
        guarded = True
        yield
        guarded = False
        assert "MLFLOW_TRACKING_URI" not in os.environ
    assert visited == []
    assert list(empty.iterdir()) == []


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    return Tracker.open(str(tmp_path_factory.mktemp("a #1 störe")))


@dataclass
class Registrar:
    """Registers versions of a model of this name, with weights that are one small tensor."""

    tracker: Tracker
    folder: Path
    name: str

    def weights(self, value: float) -> Path:
        path = self.folder / f"{self.name}-{value}.safetensors"
        safetensors.numpy.save_file({"w": np.full(3, value, np.float32)}, path)
        return path

    def __call__(self, mean_ap: float | None, *, fill: float = 0.0, **changes: Any) -> int:
        recipe = self.folder / "resolved.yaml"
        recipe.write_text("dataset: drawn\n")
        keywords: dict[str, Any] = {
            "name": self.name,
            "weights": self.weights(fill),
            "recipe_yaml": recipe,
            "model_card": CARD.to_dict(),
            "metrics": {} if mean_ap is None else {"mAP": mean_ap, "R1": 90.0},
            "tags": TAGS,
        }
        run = self.tracker.start_run(f"{self.name}-{fill}")
        return register_model(self.tracker, run, **{**keywords, **changes})

    def aliases(self) -> dict[str, int]:
        model = self.tracker.client.get_registered_model(self.name)
        return {alias: int(version) for alias, version in model.aliases.items()}


@pytest.fixture
def register(tracker: Tracker, tmp_path: Path, request: pytest.FixtureRequest) -> Registrar:
    return Registrar(tracker, tmp_path, request.node.name)


def local(uri: str) -> Path:
    """The path of a file URI, as the artifacts of a SQLite store have it."""
    return Path(urllib.request.url2pathname(uri.removeprefix("file://")))


def run_python(code: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """A fresh interpreter that sees the packages under test; its working directory is ours."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_import_is_light() -> None:
    code = "import sys, pipelines.registry; print({'mlflow', 'torch', 'pandas'} & set(sys.modules))"
    output, errors = run_python(code).communicate()
    assert (output.strip(), errors) == ("set()", "")


OPEN = """
import os, sys
import mlflow.store.tracking.sqlalchemy_store
from pipelines.registry import Tracker

def child():
    print(Tracker.open(sys.argv[1]).start_run("child"), flush=True)
    os._exit(0)

children = [os.fork() or child() for _ in range(4)]
sys.exit(any([os.waitpid(process, 0)[1] for process in children]))
"""


def test_four_processes_open_a_fresh_store_at_once(tmp_path: Path) -> None:
    process = run_python(OPEN, str(tmp_path), MLFLOW_DISABLE_TELEMETRY="true")
    output, errors = process.communicate()
    assert (process.returncode, errors) == (0, "")
    tracker = Tracker.open(str(tmp_path))
    runs = tracker.client.search_runs([tracker.experiment_id])
    assert len(runs) == 4
    assert {run.info.run_id for run in runs} == set(output.split())


def test_database_whose_creation_was_killed_is_made_again(tmp_path: Path) -> None:
    process = run_python(
        "import sys; from pipelines.registry import Tracker; Tracker.open(sys.argv[1])",
        str(tmp_path),
    )
    while not list(tmp_path.glob(".tmp-*")) and process.poll() is None:
        time.sleep(0.002)
    process.kill()
    process.communicate()
    tracker = Tracker.open(str(tmp_path))
    assert tracker.find_run({"none": "such"}) is None
    assert list(tmp_path.glob(".tmp-*")) == []
    assert tracker.uri == f"sqlite:///{tmp_path / 'mlflow.db'}"


def test_store_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"file/store/mlflow\.db: cannot be written"):
        Tracker.open(str(tmp_path / "file" / "store"))


def test_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("something else altogether, and long enough to be read")
    with pytest.raises(UserError, match=r"mlflow\.db: cannot be read .*not a database"):
        Tracker.open(str(tmp_path))
    assert (tmp_path / "mlflow.db").read_text().startswith("something else")


def test_path_that_a_uri_would_change_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"50%/mlflow\.db: a path with"):
        Tracker.open(str(tmp_path / "50%"))


def test_remote_store_needs_a_tracking_uri() -> None:
    with pytest.raises(UserError, match=r"memory://bucket.*MLFLOW_TRACKING_URI"):
        Tracker.open("memory://bucket")


def test_server_that_does_not_listen_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        with pytest.raises(UserError, match=f"{uri}: no server answers"):
            Tracker.open("unused")


def test_deleted_experiment_is_named(tracker: Tracker) -> None:
    store = str(Path(tracker.uri.removeprefix("sqlite:///")).parent)
    other = Tracker.open(store, experiment="other")
    assert other.experiment_id != tracker.experiment_id
    other.client.delete_experiment(other.experiment_id)
    with pytest.raises(UserError, match="'other' was deleted"):
        Tracker.open(store, experiment="other")


def test_environment_names_the_database(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = tracker.start_run("elsewhere", tags={"where": "elsewhere"})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracker.uri)
    assert Tracker.open(str(tmp_path)).find_run({"where": "elsewhere"}) == run
    assert list(tmp_path.iterdir()) == []


def test_run_holds_what_was_logged(tracker: Tracker, tmp_path: Path) -> None:
    parent = tracker.start_run("run", tags={"fingerprint": "it's"}, params={"seed": 1})
    params = {"model": {"cnn": "resnet10t", "size": [64, 32], "weights": None}, "notes": "n" * 7000}
    child = tracker.start_run("train", parent=parent, params=params)
    rows = [("train/loss", 1 / (step + 1), step, 1_000 + step) for step in range(2_500)]
    tracker.log_metrics(child, rows)
    tracker.log_bytes(child, b"\x89PNG", "plots/cmc.png")
    (tmp_path / "report.html").write_text("<p>")
    tracker.log_artifact_file(child, tmp_path / "report.html", "pages")
    tracker.end_run(child)

    run = tracker.client.get_run(child)
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.parentRunId"] == parent
    notes = run.data.params.pop("notes")
    assert run.data.params == {
        "model.cnn": "resnet10t",
        "model.size": "[64, 32]",
        "model.weights": "null",
    }
    assert len(notes) == 6000
    assert notes == "n" * 5997 + "..."
    folder = local(run.info.artifact_uri)
    assert json.loads((folder / "params.json").read_text())["notes"] == "n" * 7000
    assert (folder / "plots" / "cmc.png").read_bytes() == b"\x89PNG"
    assert (folder / "pages" / "report.html").read_text() == "<p>"
    history = tracker.client.get_metric_history(child, "train/loss")
    assert [(m.key, m.value, m.step, m.timestamp) for m in history] == rows


def test_run_is_found_by_all_its_tags_newest_first(tracker: Tracker) -> None:
    first = tracker.start_run("first", tags={"fingerprint": "it's", "kind": "find"})
    second = tracker.start_run("second", tags={"fingerprint": "it's", "kind": "find"})
    tracker.start_run("third", tags={"fingerprint": 'say "so"', "kind": "find"})
    assert first != second
    assert tracker.find_run({"fingerprint": "it's", "kind": "find"}) == second
    assert tracker.find_run({"fingerprint": "IT'S", "kind": "find"}) is None
    assert tracker.find_run({"fingerprint": 'say "so"', "kind": "lost"}) is None
    with pytest.raises(ValueError, match="both kinds of quotes"):
        tracker.find_run({"fingerprint": "'\""})


def test_reopened_run_goes_on_without_double_points(tracker: Tracker) -> None:
    params = {"lr": 0.1, "workers": 2}
    run = tracker.start_run("train", tags={"fingerprint": "reopened"}, params=params)
    tracker.log_metrics(run, [("loss", 3.0, 0, 10), ("loss", 2.0, 1, 11), ("lr", 0.1, 0, 10)])
    tracker.end_run(run, "KILLED")

    found = tracker.find_run({"fingerprint": "reopened"})
    again = tracker.start_run("train", run_id=found, params={"lr": 0.1, "workers": 4, "new": True})
    assert again == run
    assert tracker.client.get_run(run).info.status == "RUNNING"
    tracker.log_metrics(run, [("loss", 2.0, 1, 99), ("loss", 2.5, 1, 99), ("loss", 1.0, 2, 99)])
    history = tracker.client.get_metric_history(run, "loss")
    assert sorted((m.step, m.value) for m in history) == [(0, 3.0), (1, 2.0), (1, 2.5), (2, 1.0)]
    data = tracker.client.get_run(run).data
    assert data.params == {"lr": "0.1", "workers": "2", "new": "true"}
    assert json.loads(data.tags["params_changed"]) == {"workers": "4"}


def test_dataset_is_an_input_and_a_tag(tracker: Tracker) -> None:
    run_id = tracker.start_run("ingest")
    fingerprint = "0123456789abcdef" * 4
    for _ in range(2):
        tracker.log_dataset(
            run_id, name="drawn", fingerprint=fingerprint, source="/blocks", profile={"images": 960}
        )
    run = tracker.client.get_run(run_id)
    assert run.data.tags["data_fingerprint"] == fingerprint
    (entry,) = run.inputs.dataset_inputs
    assert (entry.dataset.name, entry.dataset.digest) == ("drawn", fingerprint[:36])
    assert json.loads(entry.dataset.profile) == {"images": 960}
    assert [(tag.key, tag.value) for tag in entry.tags] == [("mlflow.data.context", "training")]


def test_same_weights_and_gallery_are_registered_once(register: Registrar) -> None:
    assert register(70.0, fill=1.0) == 1
    assert register(70.0, fill=1.0) == 1
    assert register(70.0, fill=2.0) == 2
    assert register(70.0, fill=1.0, tags={**TAGS, "gallery": "gallery-2"}) == 3
    assert register.aliases() == {"challenger": 3}
    assert register(71.5, fill=1.0, tags={**TAGS, "protocol": "flip"}) == 1
    tags = register.tracker.client.get_model_version(register.name, "1").tags
    assert (tags["metric.mAP"], tags["protocol"]) == ("71.5", "flip")
    assert register.aliases() == {"challenger": 3}


def test_registration_goes_on_after_a_kill(register: Registrar) -> None:
    """A killed run leaves a logged model without files, or a whole one without a version."""
    client = register.tracker.client

    def logged() -> list[Any]:
        found = client.search_logged_models([register.tracker.experiment_id])
        tag = client.get_model_version(register.name, "1").tags["registration"]
        return [model for model in found if model.tags.get("registration") == tag]

    register(70.0)
    (whole,) = logged()
    assert whole.status == "READY"
    registration = whole.tags["registration"]
    client.delete_registered_model(register.name)
    register(70.0)
    assert [model.model_id for model in logged()] == [whole.model_id]

    client.delete_registered_model(register.name)
    client.delete_logged_model(whole.model_id)
    pending = client.create_logged_model(
        register.tracker.experiment_id, name="cut", tags={"registration": registration}
    )
    register(70.0)
    (finished,) = logged()
    assert (finished.model_id, finished.status) == (pending.model_id, "READY")
    assert (local(finished.artifact_location) / "MLmodel").exists()
    assert register.aliases() == {"challenger": 1}


def test_registration_refuses_what_could_not_be_used(register: Registrar) -> None:
    with pytest.raises(UserError, match="'a/b': a model name"):
        register(1.0, name="a/b")
    with pytest.raises(ValueError, match=r"'protocol'.*missing"):
        register(1.0, tags={"data_fingerprint": "d", "gallery": "g"})
    with pytest.raises(ValueError, match="SHA-256"):
        register(1.0, tags={**TAGS, "weights_sha256": "0" * 64})
    card = CARD.to_dict()
    with pytest.raises(ValueError, match="num_classes"):
        register(1.0, model_card={k: v for k, v in card.items() if k != "num_classes"})
    cut = register.weights(5.0)
    cut.write_bytes(cut.read_bytes()[:-4])
    with pytest.raises(UserError, match=r"5\.0\.safetensors: not a whole safetensors file"):
        register(1.0, weights=cut)
    with pytest.raises(UserError, match="no such model"):
        promote(register.tracker, register.name)
    assert champion(register.tracker, register.name) is None


def test_promotion_needs_at_least_the_champions_map(register: Registrar) -> None:
    register(70.0, fill=1.0)
    first = promote(register.tracker, register.name)
    assert (first.version, first.previous, first.mean_ap, first.changed) == (1, None, 70.0, True)
    assert register.aliases() == {"champion": 1}
    assert promote(register.tracker, register.name).changed is False

    register(69.9, fill=2.0)
    assert register.aliases() == {"champion": 1, "challenger": 2}
    with pytest.raises(PromotionRefusedError, match=r"version 2 has mAP 69\.9.*below 70\.0"):
        promote(register.tracker, register.name)
    assert champion(register.tracker, register.name) == 1
    forced = promote(register.tracker, register.name, force=True)
    assert (forced.version, forced.previous, forced.previous_mean_ap) == (2, 1, 70.0)

    register(69.9, fill=3.0)
    assert promote(register.tracker, register.name).version == 3
    assert promote(register.tracker, register.name, 1).version == 1
    with pytest.raises(UserError, match=r"no version 9; there are \[1, 2, 3\]"):
        promote(register.tracker, register.name, 9)


@pytest.mark.parametrize("key", ["data_fingerprint", "protocol"])
def test_promotion_refuses_to_compare_other_data_or_protocol(register: Registrar, key: str) -> None:
    register.name = f"compare-{key}"
    register(70.0, fill=1.0)
    promote(register.tracker, register.name)
    register(99.0, fill=2.0, tags={**TAGS, key: "another"})
    with pytest.raises(PromotionRefusedError, match=f"{key} another.*--force"):
        promote(register.tracker, register.name)
    assert champion(register.tracker, register.name) == 1
    assert promote(register.tracker, register.name, force=True).version == 2


@pytest.mark.parametrize("mean_ap", [None, float("nan")])
def test_promotion_refuses_a_version_without_map(
    register: Registrar, mean_ap: float | None
) -> None:
    register.name = f"without-{mean_ap}"
    register(70.0, fill=1.0)
    promote(register.tracker, register.name)
    register(mean_ap, fill=2.0)
    with pytest.raises(PromotionRefusedError, match="has no mAP"):
        promote(register.tracker, register.name)


def test_rollback_goes_back_champion_by_champion(register: Registrar) -> None:
    for value in (1.0, 2.0, 3.0, 4.0):
        register(70.0 + value, fill=value)
        promote(register.tracker, register.name)
    register.tracker.client.delete_model_version(register.name, "3")
    assert rollback(register.tracker, register.name) == 2
    assert champion(register.tracker, register.name) == 2
    assert promote(register.tracker, register.name, 4).previous == 2
    assert rollback(register.tracker, register.name) == 2
    assert rollback(register.tracker, register.name) == 1
    with pytest.raises(UserError, match="no earlier champion"):
        rollback(register.tracker, register.name)
    assert champion(register.tracker, register.name) == 1
    register(72.0, fill=2.0)
    assert register.aliases() == {"champion": 1}


@dataclass(frozen=True)
class RealModel:
    """A registered and promoted network, its images and what they must embed to."""

    folder: Path
    files: list[Path]
    """What registration wrote, before anything was loaded from it."""
    images: list[bytes]
    cameras: list[str | None]
    embeddings: np.ndarray
    """float32 [B, D], each of length 1."""


@pytest.fixture(scope="module")
def real_model(tracker: Tracker, tmp_path_factory: pytest.TempPathFactory) -> RealModel:
    import reid_models

    torch.manual_seed(0)
    network = reid_models.create_model(
        CARD.model, CARD.num_classes, image_size=(64, 32), camera_count=2, **CARD.options
    )
    network.eval()
    folder = tmp_path_factory.mktemp("real")
    save_weights(folder / "model.safetensors", network)
    (folder / "recipe.yaml").write_text("dataset: drawn\n")
    pixels = np.random.default_rng(0).integers(0, 256, (70, 64, 32, 3), dtype=np.uint8)
    cameras: list[str | None] = [("c1", "c2", "c9", None)[i % 4] for i in range(70)]
    normal_BHWC = (pixels / 255 - CARD.mean) / CARD.std
    normal_BCHW = torch.tensor(normal_BHWC.transpose(0, 3, 1, 2), dtype=torch.float32)
    indices = torch.tensor([{"c1": 0, "c2": 1}.get(str(name), -1) for name in cameras])
    with torch.inference_mode():
        raw_BD = network(normal_BCHW, indices).embedding.numpy()

    run = tracker.start_run("real")
    register_model(
        tracker,
        run,
        name="real",
        weights=folder / "model.safetensors",
        recipe_yaml=folder / "recipe.yaml",
        model_card=replace(CARD, embedding_dim=network.embedding_dim).to_dict(),
        metrics={"mAP": 70.0},
        tags=TAGS,
    )
    number = promote(tracker, "real").version
    source = tracker.client.get_model_version("real", str(number)).source
    stored = local(source)
    return RealModel(
        folder=stored,
        files=[path for path in stored.rglob("*") if path.is_file()],
        images=[_png(image) for image in pixels],
        cameras=cameras,
        embeddings=raw_BD / np.linalg.norm(raw_BD, axis=1, keepdims=True),
    )


def _png(pixels_HWC: np.ndarray) -> bytes:
    encoded = BytesIO()
    Image.fromarray(pixels_HWC).save(encoded, format="PNG")
    return encoded.getvalue()


LOAD = """
import sys
import numpy as np, pandas as pd
import mlflow
seen = []
watched = {"pickle.find_class", "socket.connect", "socket.getaddrinfo"}
sys.addaudithook(lambda event, arguments: seen.append(event) if event in watched else None)
rows = np.load(sys.argv[1], allow_pickle=False)
images = [bytes(row[:size]) for row, size in zip(rows["bytes"], rows["sizes"])]
cameras = [name or None for name in rows["cameras"].tolist()]
model = mlflow.pyfunc.load_model("models:/real@champion")
np.save(sys.argv[2], model.predict(pd.DataFrame({"image": images, "camera": cameras})))
print(seen)
"""


def test_champion_loads_in_a_fresh_process(
    tracker: Tracker, real_model: RealModel, tmp_path: Path
) -> None:
    sizes = [len(image) for image in real_model.images]
    padded = [image.ljust(max(sizes), b"\0") for image in real_model.images]
    np.savez(
        tmp_path / "rows.npz",
        bytes=np.frombuffer(b"".join(padded), np.uint8).reshape(len(sizes), -1),
        sizes=sizes,
        cameras=[name or "" for name in real_model.cameras],
    )
    arguments = (str(tmp_path / "rows.npz"), str(tmp_path / "embeddings.npy"))
    process = run_python(LOAD, *arguments, MLFLOW_TRACKING_URI=tracker.uri)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert output.strip() == "[]"
    embeddings_BD = np.load(tmp_path / "embeddings.npy")
    assert embeddings_BD.dtype == np.float32
    np.testing.assert_allclose(embeddings_BD, real_model.embeddings, atol=1e-5)


def test_model_takes_images_alone_and_names_the_row_it_refuses(real_model: RealModel) -> None:
    import mlflow
    import pandas as pd

    model = mlflow.pyfunc.load_model(str(real_model.folder))
    rows = [i for i, name in enumerate(real_model.cameras) if name is None]
    images = pd.DataFrame({"image": [real_model.images[i] for i in rows]})
    np.testing.assert_allclose(model.predict(images), real_model.embeddings[rows], atol=1e-5)
    with pytest.raises(ValueError, match="row 1: not an image file"):
        model.predict(pd.DataFrame({"image": [real_model.images[0], b"plain text"]}))
    with pytest.raises(mlflow.exceptions.MlflowException, match="missing inputs"):
        model.predict(pd.DataFrame({"picture": [real_model.images[0]]}))


def test_no_file_of_a_version_is_a_pickle(real_model: RealModel) -> None:
    parts = {"model.safetensors", "model_card.json", "recipe.yaml", "pyfunc_model.py"}
    assert parts <= {path.name for path in real_model.files}
    endings = {"", ".json", ".py", ".safetensors", ".txt", ".yaml"}
    assert {path.suffix for path in real_model.files} <= endings
    for path in real_model.files:
        head = path.read_bytes()[:4]
        assert not head.startswith((b"\x80", b"PK\x03\x04")), path


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A real MLflow server on a free port; ended by its process group."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1"]
    command += ["--port", str(port), "--backend-store-uri", f"sqlite:///{tmp_path}/server.db"]
    command += ["--artifacts-destination", (tmp_path / "artifacts").as_uri()]
    log = (tmp_path / "server.log").open("w")
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True
    )
    uri = f"http://127.0.0.1:{port}"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        deadline = time.monotonic() + 90
        while True:
            try:
                opener.open(f"{uri}/health", timeout=5).close()
                break
            except OSError:
                alive = process.poll() is None and time.monotonic() < deadline
                assert alive, (tmp_path / "server.log").read_text()
                time.sleep(0.2)
        yield uri
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.close()


@pytest.mark.slow
def test_server_takes_runs_and_versions(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    tracker = Tracker.open("unused")
    run = tracker.start_run("run", tags={"fingerprint": "f"}, params={"a": {"b": 1}})
    rows = [("loss", float(step), step, step) for step in range(1_500)]
    tracker.log_metrics(run, rows)
    tracker.log_bytes(run, b"<p>", "report.html")
    assert tracker.find_run({"fingerprint": "f"}) == run
    assert len(tracker.client.get_metric_history(run, "loss")) == 1_500

    register = Registrar(tracker, tmp_path, "served")
    assert register(70.0, fill=1.0) == 1
    assert register(70.0, fill=1.0) == 1
    assert promote(tracker, "served").version == 1
    assert register(60.0, fill=2.0) == 2
    with pytest.raises(PromotionRefusedError, match="below"):
        promote(tracker, "served")
    assert register.aliases() == {"champion": 1, "challenger": 2}
    promote(tracker, "served", force=True)
    assert rollback(tracker, "served") == 1
    assert {path.name for path in (tmp_path / "artifacts").rglob("*.safetensors")}
