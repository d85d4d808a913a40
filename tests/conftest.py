"""One Ray for the whole test session, and small drawn datasets."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipelines.environment import prepare_environment

prepare_environment()

TINY = (
    "model.cnn=resnet10t",
    "model.transformer=vit_tiny_patch16_224",
    "model.fusion_dim=48",
    "input.image_size=[64,32]",
    "drawn.train_identities=8",
    "drawn.test_identities=4",
    "drawn.cameras=2",
    "drawn.images_per_camera=3",
    "drawn.distractors=3",
    "drawn.image_size=[64,32]",
    "batch.identities=4",
    "batch.images=2",
    "train.epochs=2",
    "train.steps_per_epoch=3",
    "train.log_steps=2",
    "train.checkpoint_epochs=1",
    "data.rows_per_shard=16",
    "embed.rows_per_part=8",
    "gallery.shards=2",
)


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups, which it does in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that start a Ray run one after the other, in one of the workers of `pytest -n`: two
    Rays would fight for the cores, and time out."""
    for item in items:
        if item.get_closest_marker("ray") or item.get_closest_marker("cluster"):
            item.add_marker(pytest.mark.xdist_group("ray"))


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A Ray in this process, with the dashboard's parts, which free the CPUs of stopped trials."""
    from pipelines.ray_session import ray_session as session

    with session(dashboard=True):
        yield


@pytest.fixture
def tiny() -> tuple[str, ...]:
    """Overrides of the recipe `demo` that make a run take seconds."""
    return TINY


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder with the real datasets; the test is skipped where there is none."""
    root = os.environ.get("REID_DATA_ROOT")
    if not root:
        pytest.skip("REID_DATA_ROOT is not set")
    return Path(root)


@pytest.fixture
def image_folder(tmp_path: Path) -> Callable[..., Path]:
    """Makes a folder an identity with small drawn JPEGs."""
    from PIL import Image

    def make(
        identities: int = 12,
        cameras: int = 2,
        images: int = 2,
        name: str = "crops",
        prefix: str = "p",
    ) -> Path:
        root = tmp_path / name
        for identity in range(identities):
            folder = root / f"{prefix}{identity:03d}"
            folder.mkdir(parents=True)
            for camera in range(1, cameras + 1):
                for number in range(images):
                    shade = (20 * identity % 256, 40 * camera % 256, 90 + 15 * number)
                    Image.new("RGB", (32, 64), shade).save(folder / f"c{camera}_{number}.jpg")
        return root

    return make
