"""Figures during training, on train identities that are kept out of it.

The test split is for the final figure alone. Here every held-out identity's first image under each
camera is a query, and all its images are the gallery; the evaluation is the one of the final
figures.

Memory: the encoded held-out images and their embeddings.
"""

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import torch
from torch import nn
from torch.nn import functional

from pipelines.blocks import Blocks, read_shard
from pipelines.embedder import ModelCard
from pipelines.engine import to_model_input
from pipelines.errors import UserError
from pipelines.identity_index import IdentityIndex
from pipelines.images import decode
from pipelines.retrieval import EmbeddingSet, Settings, evaluate, find_protocol

BATCH = 64
FIGURES = ("mAP", "mINP", "R1", "R5")


@dataclass(frozen=True)
class HoldOut:
    """The held-out identities of some blocks; images are read where the figures are taken."""

    blocks: Blocks
    index: IdentityIndex
    protocol: str
    _rows: list[pa.Table] = field(default_factory=list, compare=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.index) < 2:
            raise UserError(
                f"data.holdout keeps {len(self.index)} of the train identities for validation; "
                "at least 2 are needed: raise it or add identities"
            )

    def evaluate(self, model: nn.Module, device: torch.device, card: ModelCard) -> dict[str, float]:
        """mAP, mINP, R1 and R5 in percent. The model is left in the mode it was in."""
        rows = self._read()
        vectors_ND = _embed(model, device, card, rows)
        columns = ["key", "identity", "camera", "role", "domain"]
        is_query = _first_per_camera(rows)
        gallery = rows.select(columns).append_column("split", pa.array(["gallery"] * rows.num_rows))
        query = gallery.filter(pa.array(is_query)).set_column(
            len(columns), "split", pa.array(["query"] * int(is_query.sum()))
        )
        both = EmbeddingSet(
            rows=pa.concat_tables([query, gallery]),
            vectors=np.concatenate([vectors_ND[is_query], vectors_ND]),
        )
        how = Settings(protocol=self._rule(), resamples=0, by_camera=False, shown=0)
        metrics = evaluate(both, how).metrics
        return {name: metrics[name] for name in FIGURES}

    def _rule(self) -> str:
        """Drawn galleries and lists are those of the test images."""
        rules = find_protocol(self.protocol)
        return "market" if rules.excludes_same_camera or rules.lists else "any_camera"

    def _read(self) -> pa.Table:
        if not self._rows:
            pieces = []
            for shard in sorted(set(self.index.shard_I.tolist())):
                table = read_shard(self.blocks.folder, shard)
                for first, count in zip(
                    self.index.first_row_I[self.index.shard_I == shard],
                    self.index.count_I[self.index.shard_I == shard],
                    strict=True,
                ):
                    pieces.append(table.slice(int(first), int(count)))
            self._rows.append(pa.concat_tables(pieces).combine_chunks())
        return self._rows[0]


def _first_per_camera(rows: pa.Table) -> np.ndarray:
    seen: set[tuple[str, str | None]] = set()
    first = np.zeros(rows.num_rows, dtype=bool)
    pairs = zip(rows["identity"].to_pylist(), rows["camera"].to_pylist(), strict=True)
    for i, pair in enumerate(pairs):
        first[i] = pair not in seen
        seen.add(pair)
    return first


@torch.inference_mode()
def _embed(model: nn.Module, device: torch.device, card: ModelCard, rows: pa.Table) -> np.ndarray:
    inner = getattr(model, "module", model)  # the other ranks do not take part
    was_training = inner.training
    inner.eval()
    pieces = []
    for start in range(0, rows.num_rows, BATCH):
        batch = rows.slice(start, BATCH)
        pixels = np.stack(
            [decode(i.as_buffer(), card.image_size, card.interpolation) for i in batch["image"]]
        )
        images = to_model_input(
            torch.from_numpy(pixels), mean=card.mean, std=card.std, device=device
        )
        cameras = torch.tensor(
            [card.camera_index(c) for c in batch["camera"].to_pylist()], device=device
        )
        pieces.append(functional.normalize(inner(images, cameras).embedding.float()).cpu().numpy())
    inner.train(was_training)
    return np.concatenate(pieces)
