"""The protocol of some figures: as plain values, and as one line for people."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import pyarrow.compute as pc

from pipelines.retrieval.features import Embeddings
from pipelines.retrieval.protocol import find_protocol
from pipelines.retrieval.setting import Setting
from pipelines.retrieval.settings import Provenance, Settings


def as_protocol(
    embeddings: Embeddings, setting: Setting, how: Settings, origin: Provenance, *, draws: int
) -> dict[str, Any]:
    """All that the figures depend on, and what was counted on the way."""
    rules = find_protocol(how.protocol)
    distractors = pc.sum(pc.equal(setting.gallery["role"], "distractor")).as_py()
    return {
        "name": how.protocol,
        "ap": {"mAP": "step", "mAP_trapezoid": "trapezoid"}
        | ({"mAP_top10": "top-10"} if rules.top_ten else {}),
        "distance": "cosine",
        "queries_used": len(setting.queries),
        "queries_dropped": dict(sorted(setting.judgement.dropped.items())),
        "gallery_size": len(setting.gallery),
        "distractors": int(distractors),
        "junk_removed": setting.junk_removed + origin.junk_left_out,
        "draws": draws,
        "seed": how.seed,
        "parts": list(how.parts),
        "unit_parts": how.unit_parts,
        "flip": origin.flip,
        "precision": origin.precision,
        "expansion": False if how.expansion is None else asdict(how.expansion),
        "rerank": False if how.rerank is None else asdict(how.rerank),
        "embedding_dim": embeddings.dim,
        "embeddings_sha256": embeddings.fingerprint,
        "weights_sha256": origin.weights_sha256,
        "dataset": origin.dataset,
        "data_fingerprint": origin.data_fingerprint,
    }


def describe_protocol(protocol: Mapping[str, Any]) -> str:
    """The values of `as_protocol` in words."""
    dropped = protocol["queries_dropped"]
    reasons = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in dropped.items())
    flip = {True: "flip", False: "no flip", None: "flip unknown"}[protocol["flip"]]
    return "; ".join(
        [
            f"{protocol['name']}, {protocol['distance']}" + _drawn(protocol["draws"]),
            ", ".join(f"{name} by {formula} AP" for name, formula in protocol["ap"].items()),
            f"{protocol['queries_used']:,} queries used, {sum(dropped.values()):,} dropped"
            + (f" ({reasons})" if reasons else ""),
            f"gallery {protocol['gallery_size']:,} with {protocol['distractors']:,} distractors, "
            f"{protocol['junk_removed']:,} junk taken out",
            *_parts(protocol),
            flip,
            *([protocol["precision"]] if protocol["precision"] else []),
            *_expanded(protocol["expansion"]),
            _reranked(protocol["rerank"]),
            f"embeddings {protocol['embeddings_sha256'][:12]}",
            *_data(protocol),
        ]
    )


def _drawn(draws: int) -> str:
    return f", mean of {draws} draws" if draws > 1 else ""


def _parts(protocol: Mapping[str, Any]) -> list[str]:
    if not protocol["parts"] and not protocol["unit_parts"]:
        return []
    names = ", ".join(protocol["parts"]) or "all parts"
    return [names + (", each of unit length" if protocol["unit_parts"] else "")]


def _expanded(expansion: Any) -> list[str]:
    if not expansion:
        return []
    return [f"query expansion (k {expansion['k']}, alpha {expansion['alpha']:g})"]


def _reranked(rerank: Any) -> str:
    if not rerank:
        return "no re-ranking"
    return f"re-ranking (k1 {rerank['k1']}, k2 {rerank['k2']}, lambda {rerank['weight']:g})"


def _data(protocol: Mapping[str, Any]) -> list[str]:
    if not protocol["data_fingerprint"]:
        return []
    return [f"data {protocol['dataset'] or ''} {protocol['data_fingerprint'][:12]}"]
