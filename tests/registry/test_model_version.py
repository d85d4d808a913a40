"""A registered version is a whole model: it loads anywhere, without a pickle."""

from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.engine import save_weights
from pipelines.registry import (
    Tracker,
    promote,
    register_model,
)
from tests.registry.helpers import CARD, TAGS, local, run_python


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
        recipe_yaml="dataset: drawn\n",
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
