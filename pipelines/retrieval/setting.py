"""One draw of a protocol: who asks, who answers, what is right; and the task it makes."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipelines.errors import UserError
from pipelines.retrieval.expansion import expand_queries
from pipelines.retrieval.features import Embeddings
from pipelines.retrieval.pairs import Rows
from pipelines.retrieval.protocol import find_protocol
from pipelines.retrieval.ranking import Task
from pipelines.retrieval.relevance import Judgement, judge
from pipelines.retrieval.reranking import rerank
from pipelines.retrieval.scorers import Cosine, KReciprocal, Scorer
from pipelines.retrieval.settings import Settings
from pipelines.retrieval.sides import Sides, sides_of
from pipelines.retrieval.vectors import HeldVectors, VectorSource


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Rows of the queries that count and of the gallery, with the judgement between them."""

    queries: pa.Table
    """[Q]"""
    gallery: pa.Table
    """[G]"""
    query_index: Rows
    """[Q] row numbers in the embeddings."""
    gallery_index: Rows
    """[G]"""
    judgement: Judgement
    junk_removed: int
    """Junk rows that were taken out of the gallery."""

    def task(self, embeddings: Embeddings, how: Settings) -> Task:
        """What is ranked; re-ranking looks for its neighbours here.

        Raises:
            UserError: re-ranking where the gallery is not held in memory.
        """
        gallery = embeddings.source_of(self.gallery_index)
        camera = self.gallery["camera"]
        known = how.by_camera and camera.null_count < len(camera)
        return Task(
            scorer=_scorer(embeddings, self.query_index, gallery, how),
            gallery=gallery,
            good=self.judgement.good,
            removed=self.judgement.removed,
            camera=_codes(camera) if known else None,
        )


def settings_of(rows: pa.Table, how: Settings, *, lists: pa.Table | None = None) -> list[Setting]:
    """One a draw of the protocol.

    Raises:
        UserError: a split is not there, or no query has a right answer (with the cause).
    """
    rules = find_protocol(how.protocol)
    return [
        _setting(rows, sides, how.protocol, lists)
        for sides in sides_of(rows, rules, draws=how.draws, seed=how.seed)
    ]


def _setting(rows: pa.Table, sides: Sides, protocol: str, lists: pa.Table | None) -> Setting:
    queries, gallery = rows.take(sides.queries), rows.take(sides.gallery)
    judgement = judge(queries, gallery, protocol=protocol, lists=lists)
    return Setting(
        queries=queries.take(judgement.used),
        gallery=gallery,
        query_index=sides.queries[judgement.used],
        gallery_index=sides.gallery,
        judgement=judgement,
        junk_removed=sides.junk_removed,
    )


def _scorer(
    embeddings: Embeddings, query_index: Rows, gallery: VectorSource, how: Settings
) -> Scorer:
    queries_QD = embeddings.vectors_of(query_index)
    if how.expansion is not None:
        queries_QD = expand_queries(
            queries_QD, gallery, k=how.expansion.k, alpha=how.expansion.alpha
        )
    cosine = Cosine(queries_QD, how.device)
    if how.rerank is None:
        return cosine
    if not isinstance(gallery, HeldVectors):
        raise UserError(
            f"re-ranking needs the {len(gallery):,} gallery vectors in memory: raise "
            "evaluate.hold_mb, or leave evaluate.rerank out"
        )
    reranked = rerank(
        queries_QD,
        gallery.vectors,
        k1=how.rerank.k1,
        k2=how.rerank.k2,
        weight=how.rerank.weight,
        device=how.device,
    )
    return KReciprocal(cosine, reranked)


def _codes(camera: pa.ChunkedArray) -> Rows:
    encoded = camera.combine_chunks().dictionary_encode()
    return np.asarray(encoded.indices.fill_null(-1), dtype=np.int64)
