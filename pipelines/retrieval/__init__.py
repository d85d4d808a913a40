"""Retrieval figures from embeddings: protocols, exact ranking, CMC, mAP and mINP.

Plain numpy and Arrow: no cluster, no tracker, no index library.
"""

from pipelines.retrieval.embeddings import EmbeddingSet, load_embeddings
from pipelines.retrieval.evaluation import Evaluation, describe_protocol, evaluate
from pipelines.retrieval.protocol import PROTOCOLS, usable_queries
from pipelines.retrieval.ranking import top_matches

__all__ = [
    "PROTOCOLS",
    "EmbeddingSet",
    "Evaluation",
    "describe_protocol",
    "evaluate",
    "load_embeddings",
    "top_matches",
    "usable_queries",
]
