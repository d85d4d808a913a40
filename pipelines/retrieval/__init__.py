"""Retrieval figures from embeddings: protocols, exact ranking, CMC, mAP and mINP.

Plain numpy, torch and Arrow: no cluster, no tracker, no index library.
"""

from pipelines.retrieval.description import describe_protocol
from pipelines.retrieval.embeddings import EmbeddingSet, load_embeddings
from pipelines.retrieval.evaluation import Evaluation, evaluate
from pipelines.retrieval.features import chosen_parts
from pipelines.retrieval.protocol import PROTOCOLS, find_protocol
from pipelines.retrieval.relevance import judge
from pipelines.retrieval.setting import settings_of
from pipelines.retrieval.settings import Expansion, Provenance, Rerank, Settings
from pipelines.retrieval.stored import StoredEmbeddings, open_embeddings

__all__ = [
    "PROTOCOLS",
    "EmbeddingSet",
    "Evaluation",
    "Expansion",
    "Provenance",
    "Rerank",
    "Settings",
    "StoredEmbeddings",
    "chosen_parts",
    "describe_protocol",
    "evaluate",
    "find_protocol",
    "judge",
    "load_embeddings",
    "open_embeddings",
    "settings_of",
]
