"""What a run's weights, or a search, depend on: the fingerprint that names its folder."""

from functools import lru_cache
from pathlib import Path

from fsspec.implementations.local import LocalFileSystem

from pipelines.blocks import Blocks
from pipelines.errors import UserError
from pipelines.recipe import Recipe
from pipelines.store import fingerprint, sha256_file

TRAINED_BY = (
    "seed",
    "model",
    "data",
    "input",
    "augment",
    "batch",
    "loss",
    "optim",
    "schedule",
    "average",
    "unfreeze",
    "train",
)
WITHOUT_EFFECT = {
    # what is joined from where shows in the data's own fingerprint
    "data": {
        "root",
        "roots",
        "sources",
        "target",
        "source_images",
        "rows_per_shard",
        "quarantine_limit",
    },
    "train": {
        "log_steps",
        "max_failures",
        "keep_checkpoints",
        "checkpoint_epochs",
        "validate_epochs",
    },
}


def training_fingerprint(recipe: Recipe, blocks: Blocks) -> str:
    """SHA-256 of the data's fingerprint and every setting that the weights depend on."""
    plain = recipe.to_dict()
    parts = {name: plain[name] for name in TRAINED_BY}
    parts["model"] |= weights_checksums(recipe)
    if recipe.data.holdout:
        parts["protocol"] = recipe.evaluate.protocol  # of the held-out figures
    else:
        for name in recipe.model.embedding_options():
            del parts["model"][name]
    views = parts["batch"].pop("views")
    if views:
        parts["batch"]["views"] = list(views.items())  # they have an order
    for section, names in WITHOUT_EFFECT.items():
        parts[section] = {k: v for k, v in parts[section].items() if k not in names}
    return fingerprint(blocks.fingerprint, parts)


def search_fingerprint(recipe: Recipe, blocks: Blocks) -> str:
    """SHA-256 of all that a search's trials and their scores depend on."""
    return fingerprint(
        training_fingerprint(recipe, blocks),
        recipe.model.embedding_options(),  # the scores are those of the embedding
        recipe.tune.model_dump(exclude={"concurrent"}),
        recipe.evaluate.protocol,
    )


def weights_checksums(recipe: Recipe) -> dict[str, str]:
    """SHA-256 of the files of pretrained weights that the recipe names, by option."""
    checksums = {}
    for option, file in recipe.model.weights_files().items():
        path = Path(file)
        if not path.is_file():
            raise UserError(f"model.{option}={file}: no such file")
        checksums[option] = file_checksum(path)
    return checksums


def file_checksum(path: Path) -> str:
    """SHA-256 of a file; read again in this process only if it has changed."""
    stat = path.stat()
    return _checksum(str(path), stat.st_size, stat.st_mtime_ns)


@lru_cache
def _checksum(path: str, size: int, modified_ns: int) -> str:
    return sha256_file(LocalFileSystem(), path)
