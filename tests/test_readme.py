"""The README's Python does what it says."""

import re
from pathlib import Path

import numpy as np
import onnxruntime
import pyarrow.parquet as pq
import pytest

from pipelines.embedder import CARD, WEIGHTS, ModelCard
from pipelines.engine import save_weights
from pipelines.gallery import build_gallery
from pipelines.recipe_file import load_recipe
from pipelines.store import Folder
from tests.conftest import TINY
from tests.embedding_files import embedding_table

README = Path(__file__).parent.parent / "README.md"
DIMENSION = 16


@pytest.fixture
def places(tmp_path: Path) -> dict[str, Path]:
    """Folders that the README names, and real ones in their place."""
    gallery, run = tmp_path / "gallery", tmp_path / "run"
    vectors = np.eye(DIMENSION, dtype=np.float32)
    table = embedding_table(vectors, identity=[f"p{i}" for i in range(DIMENSION)])
    pq.write_table(table, tmp_path / "embeddings.parquet")
    build_gallery(
        tmp_path / "embeddings.parquet", str(gallery), model={"name": None, "version": None}
    )
    card = ModelCard.of_recipe(load_recipe("demo", TINY), cameras=("a", "b"), num_classes=4)
    Folder.open(str(run)).make().write_json(CARD, card.to_dict())
    save_weights(run / WEIGHTS, card.create_model())
    return {
        "store/galleries/demo-drawn-0123456789ab": gallery,
        "store/runs/demo-drawn-0123456789ab": run,
    }


def test_python_blocks(
    places: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = README.read_text(encoding="utf-8")
    for named, real in places.items():
        assert named in text
        text = text.replace(named, str(real))
    monkeypatch.chdir(tmp_path)
    vectors = np.eye(DIMENSION, dtype=np.float32)[:2]
    for code in re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
        exec(code, {"vectors": vectors})
    first_hit = next(x for x in capsys.readouterr().out.splitlines() if not x.startswith("["))
    assert first_hit.split()[:2] == ["0", "p0"]
    feed = {"images": np.zeros((3, 3, 64, 32), np.float32), "cameras": np.array([0, 1, -1])}
    session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
    (embedding,) = session.run(None, {i.name: feed[i.name] for i in session.get_inputs()})
    assert embedding.shape == (3, 4 * 48 + 512 + 192)
