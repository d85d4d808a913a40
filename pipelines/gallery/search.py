"""An open gallery: search it, look at it, check it.

Shapes: Q queries, D embedding dimension.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.errors import UserError
from pipelines.gallery.exact import Found, search_exact
from pipelines.gallery.manifest import GalleryManifest, read_manifest
from pipelines.gallery.reranked import Reranking, search_reranked
from pipelines.gallery.shard import Shard, Vectors
from pipelines.gallery.verify import digest_problems, verify_gallery
from pipelines.store import Folder


@dataclass(frozen=True, kw_only=True, slots=True)
class Hit:
    """One gallery row that a query found."""

    id: int
    """Stays the same for the life of the row."""
    key: str
    identity: str | None
    camera: str | None
    score: float
    """Cosine of the two embeddings; after re-ranking, minus their final distance."""
    uri: str | None


class Gallery:
    """A gallery that is searched. Memory: ids only; vectors are mapped and rows stay on disk."""

    def __init__(self, folder: Folder, manifest: GalleryManifest) -> None:
        """Open the shards of a committed gallery; see `open_gallery`."""
        self.folder, self.manifest = folder, manifest
        dim = manifest.embedding_dim
        self._shards = [Shard(folder, entry, dim=dim) for entry in manifest.shards]

    def __len__(self) -> int:
        return self.manifest.rows

    @property
    def embedding_dim(self) -> int:
        return self.manifest.embedding_dim

    def search(
        self, queries: npt.ArrayLike, top_k: int = 10, *, rerank: bool | Reranking = False
    ) -> list[list[Hit]]:
        """The `top_k` most similar rows of every query, best first, equal scores by id.

        Exact: independent of the number of shards, threads and queries asked together.

        Args:
            queries: [Q, D] numbers; brought to unit length here.
            top_k: hits a query; fewer only where the gallery is smaller.
            rerank: reorder the best candidates by their k-reciprocal neighbours in the whole
                gallery, those of the query's camera included; True is `Reranking()`. Costs some
                thousand look-ups a query.

        Memory: see `search_exact` and `search_reranked`.

        Raises:
            UserError: queries of another dimension than the gallery's, zero or not finite, or a
                `top_k` below 1.
        """
        queries_QD = self._unit_queries(queries)
        if top_k < 1:
            raise UserError(f"top_k={top_k}: ask for at least one hit")
        if rerank:
            settings = rerank if isinstance(rerank, Reranking) else Reranking()
            return self._hits(search_reranked(self._shards, queries_QD, top_k, settings))
        return self._hits(search_exact(self._shards, queries_QD, top_k))

    def verify(self) -> list[str]:
        """Everything wrong with the files; see `verify_gallery`."""
        return verify_gallery(self.folder.uri)

    def info(self) -> dict[str, Any]:
        """The manifest with where the gallery lies and how large it is, JSON-able."""
        files = [file for shard in self.manifest.shards for file in shard.files]
        size = sum(file.bytes for file in files)
        return {"gallery": self.folder.uri, "bytes": size, **self.manifest.to_dict()}

    def _unit_queries(self, queries: npt.ArrayLike) -> Vectors:
        given = np.asarray(queries, dtype=np.float32)
        if given.ndim != 2 or given.shape[1] != self.embedding_dim:
            raise UserError(
                f"queries of shape {list(given.shape)} do not fit {self.folder.uri}, whose "
                f"embeddings have {self.embedding_dim} dimensions: embed them with the gallery's "
                f"model ({self.manifest.model.get('name')}) and pass [queries, dimensions]"
            )
        norms_Q = np.linalg.norm(given.astype(np.float64), axis=1)
        bad = np.flatnonzero(~np.isfinite(norms_Q) | (norms_Q == 0))
        if len(bad):
            raise UserError(f"query {bad[0]} is zero or not finite: embed the image again")
        return np.asarray(given / norms_Q[:, None], dtype=np.float32)

    def _hits(self, found: Sequence[Found]) -> list[list[Hit]]:
        rows: dict[tuple[int, int], dict[str, Any]] = {}
        for number, shard in enumerate(self._shards):
            asked = [f.position[f.shard == number] for f in found]
            positions = np.unique(np.concatenate(asked)) if asked else np.empty(0, np.int64)
            if len(positions):
                table = shard.rows(positions).to_pylist()
                keys = ((number, int(position)) for position in positions)
                rows |= zip(keys, table, strict=True)
        return [
            [
                _hit(rows[int(number), int(position)], float(score))
                for number, position, score in zip(*one, strict=True)
            ]
            for one in found
        ]


def open_gallery(uri: str | Path, *, check_digests: bool = False) -> Gallery:
    """Open a committed gallery by path or address.

    Args:
        uri: the folder with `gallery.json`.
        check_digests: read every file once and compare its SHA-256; without it only sizes are
            compared, so that opening takes no time whatever the gallery's size.

    Raises:
        UserError: no gallery there, or a damaged file, which is named.
    """
    folder = Folder.open(str(uri))
    manifest = read_manifest(folder)
    if check_digests:
        problems = digest_problems(folder, manifest)
        if problems:
            raise UserError(f"{problems[0]}: delete the gallery and build it again")
    return Gallery(folder, manifest)


def _hit(row: dict[str, Any], score: float) -> Hit:
    names = ("id", "key", "identity", "camera", "uri")
    return Hit(score=score, **{name: row[name] for name in names})
