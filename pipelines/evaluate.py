"""Embeddings to numbers: the recipe's own, or a file made anywhere."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.blocks import Blocks, read_shard
from pipelines.console import Reporter
from pipelines.embed import SPLITS
from pipelines.embed import run as run_embed
from pipelines.errors import UserError
from pipelines.ingest import open_blocks
from pipelines.recipe import Recipe
from pipelines.recipe_file import section_of_overrides
from pipelines.recipe_sections import EvaluateSection
from pipelines.retrieval import (
    Evaluation,
    Expansion,
    Provenance,
    Rerank,
    Settings,
    chosen_parts,
    evaluate,
    find_protocol,
    open_embeddings,
    settings_of,
)
from pipelines.retrieval.ranked_lists import RankedHit, RankedQuery
from pipelines.stage import StageResult, once, stage_script
from pipelines.store import Folder, Store, fingerprint
from pipelines.train import require_named

DEFAULT_PROTOCOL = "market"
WITHOUT_EFFECT = {"workers", "hold_mb", "device"}


@once
def run(recipe: Recipe, store: Store, reporter: Reporter) -> StageResult:
    """Take the recipe's numbers, or find them taken. They lie beside the embeddings."""
    store.require_local("evaluate")
    require_named(recipe)
    section = with_lists(recipe.evaluate, recipe.data.root)
    require_scorable(open_blocks(recipe, store, reporter), section)
    embedded = run_embed(recipe, store, reporter)
    folder = Folder.open(embedded.uri)
    name = f"{_name(recipe)}.json"
    skipped = folder.exists(name)
    if not skipped:
        taken = evaluate_file(folder.uri, section, reporter)
        with folder.write(f"{_name(recipe)}-queries.parquet") as file:
            pq.write_table(taken.per_query, file)
        folder.write_json(f"{_name(recipe)}-lists.json", [asdict(one) for one in taken.lists])
        folder.write_json(name, as_json(taken))
    values = folder.read_json(name)
    return StageResult(stage="evaluate", skipped=skipped, uri=folder.uri, values=values)


def with_lists(section: EvaluateSection, root: str | None) -> EvaluateSection:
    """The section with the folder of its lists, where its protocol goes by lists.

    Raises:
        UserError: the protocol needs lists and there is no folder, or the other way round.
    """
    needed = find_protocol(section.protocol or DEFAULT_PROTOCOL).lists
    lists = section.lists or (root if needed else None)
    if needed != (lists is not None):
        raise UserError(
            f"evaluate.protocol={section.protocol} goes by lists of right answers: say where they "
            "lie, evaluate.lists=FOLDER"
            if needed
            else f"evaluate.lists={lists} is for evaluate.protocol=veri_lists alone: leave it out, "
            "or take that protocol"
        )
    return section.model_copy(update={"lists": lists})


def require_scorable(blocks: Blocks, section: EvaluateSection) -> None:
    """Refuse data on which the protocol has nothing to count, before anything is trained.

    Memory: the labels of the query and gallery images.
    """
    rows = pa.concat_tables(_labels(blocks, split) for split in SPLITS)
    how = replace(_settings(section), draws=1)
    settings_of(rows, how, lists=_read_lists(section))


def _labels(blocks: Blocks, split: str) -> pa.Table:
    columns = ["key", "identity", "camera", "role", "split"]
    shards = blocks.shards(split)
    if not sum(shard["rows"] for shard in shards):
        raise UserError(f"{blocks.folder.uri}: no {split} images, so nothing can be evaluated")
    return pa.concat_tables(read_shard(blocks.folder, s["shard"], columns) for s in shards)


def _name(recipe: Recipe) -> str:
    plain = recipe.evaluate.model_dump(mode="json", exclude=WITHOUT_EFFECT)
    return f"evaluation-{recipe.evaluate.protocol}-{fingerprint(plain)[:8]}"


def read_lists(recipe: Recipe, uri: str) -> list[RankedQuery]:
    """A few queries and what each of them found."""
    plain = Folder.open(uri).read_json(f"{_name(recipe)}-lists.json")
    return [
        RankedQuery(**{**one, "hits": tuple(RankedHit(**hit) for hit in one["hits"])})
        for one in plain
    ]


def evaluate_file(uri: str, section: EvaluateSection, reporter: Reporter) -> Evaluation:
    """The figures of an embeddings file, or of a folder of part files.

    What `reid embed` notes beside its parts (flip, the junk it left out) goes into the protocol.

    Memory: vectors in float32 up to `hold_mb`, or the queries' and a block of the gallery's where
    there are more; and a bounded tile of scores.
    """
    how, origin = _settings(section), _provenance(uri)
    if find_protocol(how.protocol).keeps_junk and origin.junk_left_out:
        raise UserError(
            f"{uri}: {origin.junk_left_out} junk images were not embedded, and protocol "
            f"{how.protocol} ranks them; embed with evaluate.protocol={how.protocol}"
        )
    embeddings = chosen_parts(open_embeddings(uri, splits=SPLITS, hold_mb=section.hold_mb), how)
    lists = _read_lists(section)
    with _cluster(section, reporter) as rank:
        taken = evaluate(embeddings, how, lists=lists, provenance=origin, rank=rank)
    if not find_protocol(how.protocol).clusters:
        return taken
    from pipelines.clustering import nmi_percent

    setting = settings_of(embeddings.rows, how)[0]
    vectors_QD = embeddings.vectors_of(setting.query_index)  # of named people, as they all ask
    nmi = nmi_percent(vectors_QD, setting.queries["identity"], seed=how.seed)
    return replace(taken, metrics={**taken.metrics, "NMI": nmi})


def evaluate_command(uri: str, changes: Sequence[str], reporter: Reporter) -> dict[str, Any]:
    """The figures of an embeddings file as plain values; `changes` are `evaluate.KEY=VALUE`."""
    section = section_of_overrides(EvaluateSection, "evaluate", changes)
    return as_json(evaluate_file(uri, with_lists(section, None), reporter))


def as_json(taken: Evaluation) -> dict[str, Any]:
    """`metrics` in percent, `protocol`, the CMC curve and the figures beside them."""
    plain = {
        "metrics": taken.metrics,
        "protocol": taken.protocol,
        "cmc": list(taken.cmc),
        "intervals": taken.intervals,
        "spread": taken.spread,
        "verification": taken.verification,
        "by_camera": taken.by_camera,
        "by_domain": taken.by_domain,
    }
    return {**plain, "fingerprint": fingerprint(plain)}


def _settings(section: EvaluateSection) -> Settings:
    expansion = Expansion(k=section.expansion, alpha=section.expansion_alpha)
    rerank = Rerank(k1=section.rerank_k1, k2=section.rerank_k2, weight=section.rerank_weight)
    return Settings(
        protocol=section.protocol or DEFAULT_PROTOCOL,
        draws=section.draws,
        parts=section.parts,
        unit_parts=section.unit_parts,
        expansion=expansion if section.expansion else None,
        rerank=rerank if section.rerank else None,
        resamples=section.resamples,
        seed=section.seed,
        by_camera=section.by_camera,
        device=_device(section.device),
    )


def _device(name: str) -> str:
    if name == "cpu":
        return name
    import torch

    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise UserError("evaluate.device=cuda, but this machine has no GPU: take auto or cpu")
    return "cuda" if there else "cpu"


def _provenance(uri: str) -> Provenance:
    notes = Folder.open(uri).committed()
    if not isinstance(notes, dict) or "weights_sha256" not in notes:
        return Provenance()
    names = ("dataset", "data_fingerprint", "weights_sha256", "flip", "precision")
    return Provenance(
        **{name: notes.get(name) for name in names}, junk_left_out=notes["junk_left_out"]
    )


def _read_lists(section: EvaluateSection) -> pa.Table | None:
    if section.lists is None:
        return None
    from pipelines.datasets.veri776_judgements import read_judgements

    return read_judgements(Path(section.lists).expanduser().absolute())


def _cluster(section: EvaluateSection, reporter: Reporter) -> Any:
    """A context with what counts the ranks: this process, or Ray tasks."""
    if section.workers == 1:
        return nullcontext()
    from pipelines.rank_job import rank_session

    return rank_session(section.workers, verbose=reporter.verbose)


if __name__ == "__main__":
    stage_script("evaluate")
