"""On-disk layouts of re-identification data, each read into one manifest: a row an image.

`read_dataset(name, root)` is the way in; `list_datasets()` says which there are. A dataset is one
small file: it makes columns of folders or lists, says what is official about it (`contract`), and
leaves order and checks to `manifest`. `drawn` draws a dataset of walking figures in Market-1501's
layout where no data is at hand.
"""

from pipelines.datasets.contract import Count, Dataset, Variant
from pipelines.datasets.manifest import MANIFEST_SCHEMA
from pipelines.datasets.reader import find_dataset, list_datasets, read_dataset

__all__ = [
    "MANIFEST_SCHEMA",
    "Count",
    "Dataset",
    "Variant",
    "find_dataset",
    "list_datasets",
    "read_dataset",
]
