"""How figures are taken."""

from dataclasses import dataclass

from pipelines.retrieval.ranked_lists import SHOWN
from pipelines.retrieval.ranking import DEFAULT_MEMORY_MB
from pipelines.retrieval.reranking import K1, K2, WEIGHT
from pipelines.retrieval.scorers import CPU


@dataclass(frozen=True, kw_only=True)
class Rerank:
    """k-reciprocal re-ranking, see `pipelines.retrieval.reranking`."""

    k1: int = K1
    k2: int = K2
    weight: float = WEIGHT


@dataclass(frozen=True, kw_only=True)
class Expansion:
    """Alpha query expansion, see `pipelines.retrieval.expansion`."""

    k: int
    alpha: float = 3.0


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that the figures of some embeddings depend on."""

    protocol: str = "market"
    """See `pipelines.retrieval.protocol`."""
    draws: int = 10
    """Draws of a protocol that draws its gallery."""
    parts: tuple[str, ...] = ()
    """Parts of the embedding that are kept, by name or `START:STOP`; none means all."""
    unit_parts: bool = False
    """Bring each part to unit length before all of them together."""
    expansion: Expansion | None = None
    rerank: Rerank | None = None
    resamples: int = 1000
    """Resamples of the bootstrap; 0 leaves the intervals out."""
    seed: int = 0
    """Seeds draws and resamples."""
    by_camera: bool = True
    """Take the figures of every pair of cameras too."""
    shown: int = SHOWN
    """Queries whose lists are kept for people to look at; 0 keeps none."""
    memory_mb: int = DEFAULT_MEMORY_MB
    """Size of a tile of scores, see `ranking.count_ranks`."""
    device: str = CPU
    """Where scores are computed: cpu, cuda, cuda:1, ..."""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What is known of where embeddings come from; it goes into the protocol as it is."""

    dataset: str | None = None
    data_fingerprint: str | None = None
    weights_sha256: str | None = None
    flip: bool | None = None
    """Whether they hold the sum over the image and its mirror image."""
    precision: str | None = None
    junk_left_out: int = 0
    """Junk images that were never embedded; counted with the junk taken out here."""
