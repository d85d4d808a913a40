"""What a drawn dataset consists of, and which image has which name."""

from dataclasses import dataclass

from pipelines.errors import UserError

DISTRACTOR = 0
JUNK = -1
FRAME_STEP = 25
LARGEST_FRAME = 1_000_000


@dataclass(frozen=True, kw_only=True)
class DrawnConfig:
    """The size of a drawn dataset. Two equal configs draw the same bytes."""

    train_identities: int
    """Identities in `bounding_box_train`, numbered from 1."""
    test_identities: int
    """Identities in `query` and `bounding_box_test`, numbered after those of the train split."""
    cameras: int = 4
    """Cameras; every identity is seen by each. Two at least: with one, no query has an answer."""
    images_per_camera: int = 4
    """Images of an identity under a camera, 2 at least; a test identity's first is the query."""
    distractors: int = 0
    """Gallery images named 0000: people nobody asks for, and background."""
    junk: int = 0
    """Gallery images named -1: test identities cut badly, left out when ranks are counted."""
    image_size: tuple[int, int] = (128, 64)
    """Height and width in pixels."""
    seed: int
    """Another seed draws other people and other cameras."""
    quality: int = 90
    """JPEG quality."""

    def __post_init__(self) -> None:
        """Raises `UserError` for a value out of its range."""
        least = {
            "train_identities": 1,
            "test_identities": 1,
            "cameras": 2,
            "images_per_camera": 2,
            "distractors": 0,
            "junk": 0,
            "seed": 0,
            "quality": 1,
        }
        for name, smallest in least.items():
            value = getattr(self, name)
            if value < smallest:
                raise UserError(f"drawn {name}={value}: the smallest value is {smallest}")
        if self.quality > 100:
            raise UserError(f"drawn quality={self.quality}: the largest value is 100")
        if min(self.image_size) < 16:
            raise UserError(f"drawn image_size={self.image_size}: sides of 16 pixels at least")
        most = LARGEST_FRAME // FRAME_STEP - 1
        for name in ("images_per_camera", "distractors", "junk"):
            per_camera = getattr(self, name) // (1 if name == "images_per_camera" else self.cameras)
            if per_camera > most:
                raise UserError(f"drawn {name}: {per_camera} images a camera; the most is {most}")


def plan(config: DrawnConfig) -> list[tuple[str, int, int, int]]:
    """Every image as (path in the folder, identity, camera, index): train, query, gallery.

    Identities above 0 are people, 0 is a distractor, -1 is junk; cameras count from 1, indices from
    0. Memory: one tuple an image, about 250 bytes.
    """
    people = config.train_identities + config.test_identities
    train, query, gallery = [], [], []
    for identity in range(1, people + 1):
        for camera in range(1, config.cameras + 1):
            for index in range(config.images_per_camera):
                image = (identity, camera, index)
                if identity <= config.train_identities:
                    train.append((f"bounding_box_train/{file_name(*image)}", *image))
                elif index == 0:
                    query.append((f"query/{file_name(*image)}", *image))
                else:
                    gallery.append((f"bounding_box_test/{file_name(*image)}", *image))
    for identity, count in ((DISTRACTOR, config.distractors), (JUNK, config.junk)):
        for number in range(count):
            image = (identity, 1 + number % config.cameras, number // config.cameras)
            gallery.append((f"bounding_box_test/{file_name(*image)}", *image))
    return train + query + gallery


def file_name(identity: int, camera: int, index: int) -> str:
    """Market-1501's name of an image: `PPPP_cCsS_FFFFFF_BB.jpg`, frames rising with the index."""
    person = f"{identity:04d}" if identity >= 0 else str(identity)
    return f"{person}_c{camera}s1_{FRAME_STEP * (index + 1):06d}_01.jpg"
