"""How far colours alone get on a drawn dataset: retrieval by colour histograms.

    python benchmarks/drawn_baseline.py --train-identities 60 --test-identities 40

Draws the dataset into a temporary folder, describes every query and gallery image by a colour
histogram, ranks by the Bhattacharyya coefficient and prints mAP (step) and rank 1 in percent under
Market-1501's rule: gallery images of the query's identity under the query's camera are left out,
distractors stay, junk goes. Three descriptors:

    whole        joint RGB histogram of the picture, 8 bins a channel
    stripes      HSV histograms, 16 bins a channel, in 6 horizontal stripes, columns weighed
                by a Gaussian around the middle
    grey_world   the same after the picture's mean colour is made grey, against colour casts
"""

import argparse
import tempfile
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from pipelines.datasets import read_dataset
from pipelines.datasets.drawn import DrawnConfig, draw_dataset

STRIPES = 6


def whole(picture: Image.Image) -> np.ndarray:
    """Joint RGB histogram, [512]."""
    bins = (np.asarray(picture) // 32).astype(int) @ (64, 8, 1)
    return np.bincount(bins.ravel(), minlength=512)


def stripes(picture: Image.Image) -> np.ndarray:
    """HSV histograms of the stripes, [6 * 3 * 16]; the middle columns weigh most."""
    bins = np.add(np.asarray(picture.convert("HSV")) // 16, (0, 16, 32))
    weights = np.broadcast_to(_centre(picture.width)[:, None], bins.shape)
    parts = zip(np.array_split(bins, STRIPES), np.array_split(weights, STRIPES), strict=True)
    return np.concatenate([np.bincount(p.ravel(), w.ravel(), 48) for p, w in parts])


def grey_world(picture: Image.Image) -> np.ndarray:
    """`stripes` of the picture scaled to a grey mean, [6 * 3 * 16]."""
    pixels = np.asarray(picture, np.float32)
    pixels = pixels * (110.0 / (pixels.mean((0, 1)) + 1.0))
    return stripes(Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)))


def _centre(width: int) -> np.ndarray:
    """A Gaussian over the columns, [width], a sixth of the width wide."""
    away = (np.arange(width) + 0.5) / width - 0.5
    return np.exp(-0.5 * (6 * away) ** 2)


def describe(rows: pa.Table, histogram: Callable[[Image.Image], np.ndarray]) -> np.ndarray:
    """Square roots of the normalised histograms, float32 [images, bins]."""
    features = []
    for path in rows["uri"].to_pylist():
        with Image.open(path) as picture:
            features.append(histogram(picture.convert("RGB")))
    counts = np.stack(features).astype(np.float32)
    return np.sqrt(counts / counts.sum(1, keepdims=True))


def evaluate(similarity: np.ndarray, query: pa.Table, gallery: pa.Table) -> tuple[float, float]:
    """mAP (step) and rank 1 in percent; `similarity` is [queries, gallery]."""
    precisions, firsts = [], []
    columns = [np.array(gallery[name].to_pylist()) for name in ("identity", "camera")]
    wanted = zip(query["identity"].to_pylist(), query["camera"].to_pylist(), strict=True)
    for scores, (identity, camera) in zip(similarity, wanted, strict=True):
        counted = ~((columns[0] == identity) & (columns[1] == camera))
        order = np.argsort(-scores[counted], kind="stable")
        right = (columns[0] == identity)[counted][order]
        if not right.any():
            continue
        ranks = np.flatnonzero(right)
        precisions.append(((np.arange(len(ranks)) + 1) / (ranks + 1)).mean())
        firsts.append(right[0])
    return 100 * float(np.mean(precisions)), 100 * float(np.mean(firsts))


def score_histograms(config: DrawnConfig) -> dict[str, tuple[float, float]]:
    """mAP and rank 1 of each descriptor on the dataset drawn from `config`."""
    with tempfile.TemporaryDirectory() as folder:
        draw_dataset(config, folder)
        manifest = read_dataset("drawn", folder)
        counted = manifest.filter(pc.not_equal(manifest["role"], "junk"))
        query, gallery = (
            counted.filter(pc.equal(counted["split"], split)) for split in ("query", "gallery")
        )
        scores = {}
        for histogram in (whole, stripes, grey_world):
            similarity = describe(query, histogram) @ describe(gallery, histogram).T
            scores[histogram.__name__] = evaluate(similarity, query, gallery)
    return scores


def main() -> None:
    """Draw, describe, rank, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train-identities", type=int, default=60)
    parser.add_argument("--test-identities", type=int, default=40)
    parser.add_argument("--cameras", type=int, default=4)
    parser.add_argument("--images-per-camera", type=int, default=4)
    parser.add_argument("--distractors", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    config = DrawnConfig(**vars(parser.parse_args()))
    print(config)
    for name, (mean_ap, rank_1) in score_histograms(config).items():
        print(f"{name:<12} mAP {mean_ap:5.1f}  R1 {rank_1:5.1f}")


if __name__ == "__main__":
    main()
