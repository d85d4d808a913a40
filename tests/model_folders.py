"""Model folders with small untrained networks, and drawn pictures to look at."""

import json
from dataclasses import replace
from pathlib import Path

import torch

from pipelines.datasets.drawn import DrawnConfig, encode_image
from pipelines.embedder import CARD, WEIGHTS, ModelCard
from pipelines.engine import save_weights

SMALL = ModelCard(
    model="fusion_reid",
    options={
        "cnn": "resnet10t",
        "transformer": "vit_tiny_patch16_224",
        "patch_stride": 16,
        "fusion_dim": 24,
        "fusion_heads": 2,
        "htm_depth": 1,
    },
    num_classes=5,
    cameras=("c1", "c2"),
    image_size=(64, 32),
    mean=(0.4, 0.5, 0.6),
    std=(0.2, 0.3, 0.4),
    interpolation="bilinear",
    flip=True,
    embedding_dim=0,
)
ROWS = replace(
    SMALL, model="la_transformer", options={"transformer": "vit_tiny_patch16_224"}, cameras=()
)
DRAWN = DrawnConfig(train_identities=1, test_identities=1, seed=0)


def write_model(folder: Path, card: ModelCard = SMALL, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    model = card.create_model()
    folder.mkdir(parents=True, exist_ok=True)
    whole = replace(card, embedding_dim=model.embedding_dim)
    (folder / CARD).write_text(json.dumps(whole.to_dict()), encoding="utf-8")
    save_weights(folder / WEIGHTS, model)
    return folder


def write_pictures(folder: Path) -> tuple[Path, Path]:
    """Two people."""
    paths = folder / "anna.jpg", folder / "berta.jpg"
    for identity, path in enumerate(paths, start=1):
        path.write_bytes(encode_image(DRAWN, identity, 1, 0))
    return paths
