"""What the registry tests share: a small model card, and versions with tiny weights."""

import os
import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

import pipelines
from pipelines.embedder import ModelCard
from pipelines.registry import (
    Tracker,
    register_model,
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
        keywords: dict[str, Any] = {
            "name": self.name,
            "weights": self.weights(fill),
            "recipe_yaml": "dataset: drawn\n",
            "model_card": CARD.to_dict(),
            "metrics": {} if mean_ap is None else {"mAP": mean_ap, "R1": 90.0},
            "tags": TAGS,
        }
        run = self.tracker.start_run(f"{self.name}-{fill}")
        return register_model(self.tracker, run, **{**keywords, **changes})

    def aliases(self) -> dict[str, int]:
        model = self.tracker.client.get_registered_model(self.name)
        return {alias: int(version) for alias, version in model.aliases.items()}


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
