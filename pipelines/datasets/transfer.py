"""Train on some datasets, test on another: sources joined into one label space, and a target.

Nothing of the target is trained on, and no test image of the sources is searched. Keys and cameras
get the dataset's name before them, as identities have it: cameras of two datasets are never the
same. The domain stays the dataset's name.

The protocols by name are those of LViT-Net and of the works it is compared with. One source:
Part-Aware Transformer (Ni et al., ICCV 2023). Leave one out: M3L (Zhao et al., "Learning to
Generalize Unseen Domains via Memory-based Multi-Source Meta-Learning for Person Re-Identification",
CVPR 2021), with what its authors recommend, CUHK03's new protocol on detected boxes for source and
target. Of MSMT17 the training and validation images are taken together.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.datasets.contract import PLAIN, Count, Dataset, Variant
from pipelines.datasets.manifest import build_manifest
from pipelines.errors import UserError

ANY = "transfer"
SourceImages: TypeAlias = Literal["train", "all"]
FOUR = ("market1501", "dukemtmc", "cuhk03:detected", "msmt17:trainval")
ONE_SOURCE = "one source, as in Ni et al., Part-Aware Transformer, ICCV 2023"
LEAVE_ONE_OUT = "leave one of four out, Zhao et al., M3L, CVPR 2021"
TARGET_COLUMNS = ("uri", "identity", "view", "time", "domain", "split", "role")


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """From which datasets to which; names as `NAME` or `NAME:VARIANT`."""

    sources: tuple[str, ...] = ()
    """What is trained on."""
    target: str | None = None
    """What is tested on."""
    source_images: SourceImages = "train"
    """`train`: the train split of every source. `all`: also its query and gallery images but for
    junk and distractors, as the loaders of Part-Aware Transformer take them."""
    roots: Mapping[str, str] = field(default_factory=dict)
    """Where a dataset lies, by its name without a variant; the others lie under one root."""

    def __str__(self) -> str:
        return f"{' + '.join(self.sources)} to {self.target}"


def _without(target: str) -> Transfer:
    return Transfer(sources=tuple(name for name in FOUR if name != target), target=target)


TRANSFERS: dict[str, tuple[Transfer, str]] = {
    "market1501_to_dukemtmc": (Transfer(sources=FOUR[:1], target="dukemtmc"), ONE_SOURCE),
    "dukemtmc_to_market1501": (Transfer(sources=FOUR[1:2], target="market1501"), ONE_SOURCE),
    "msmt17_to_market1501": (Transfer(sources=FOUR[3:], target="market1501"), ONE_SOURCE),
    "without_market1501": (_without("market1501"), LEAVE_ONE_OUT),
    "without_dukemtmc": (_without("dukemtmc"), LEAVE_ONE_OUT),
    "without_msmt17": (_without("msmt17:trainval"), LEAVE_ONE_OUT),
    "without_cuhk03": (_without("cuhk03:detected"), LEAVE_ONE_OUT),
}
"""The protocols that have a name, and where each comes from."""


def join_manifests(
    sources: Sequence[pa.Table], target: pa.Table, *, source_images: SourceImages
) -> pa.Table:
    """One manifest to train on the sources and test on the target.

    Args:
        sources: manifests; of a domain there is one.
        target: the manifest whose query and gallery rows, junk and distractors too, are tested on.
        source_images: `train` or `all`, see `Transfer`.

    Raises `UserError` where there is no source, or a domain is in two of the tables. Memory: the
    tables once more.
    """
    if not sources:
        raise UserError("no source to train on; name one at least")
    _refuse_twice([_domains(table) for table in (*sources, target)])
    trained = [_trained(table, source_images) for table in sources]
    tested = target.filter(pc.not_equal(target["split"], "train"))
    rows = pa.concat_tables([*trained, tested])
    domain = rows["domain"]
    return build_manifest(
        Path(f"{_listed(sources)} to {_listed([target])}"),
        key=pc.binary_join_element_wise(domain, rows["key"], "/"),
        camera=pc.binary_join_element_wise(domain, rows["camera"], "/"),
        **{name: rows[name] for name in TARGET_COLUMNS},
    )


def find_transfer(name: str, said: Transfer) -> Transfer | None:
    """What `dataset=NAME` joins by these settings; None for a dataset of its own files.

    Raises `UserError` where the settings and the name do not go together, and for sources and a
    target that do not.
    """
    if name == ANY:
        if not said.sources or not said.target:
            missing = "data.sources=[NAME,...]" if not said.sources else "data.target=NAME"
            raise UserError(f"dataset={ANY} needs {missing}, names as in `dataset`")
        plan = said
    elif said.sources or said.target:
        key = "data.sources" if said.sources else "data.target"
        raise UserError(f"{key} is for dataset={ANY}, and dataset={name}; change the one or other")
    elif name in TRANSFERS:
        named, _ = TRANSFERS[name]
        plan = Transfer(
            sources=named.sources,
            target=named.target,
            source_images=said.source_images,
            roots=said.roots,
        )
    elif said.roots or said.source_images != "train":
        key = "data.roots" if said.roots else "data.source_images"
        raise UserError(
            f"{key} is for data from one dataset to another, and dataset={name} is one by itself; "
            + ("give its place as data.root" if said.roots else "leave it out")
        )
    else:
        return None
    _check_names(name, plan)
    return plan


def read_transfer(
    plan: Transfer, root: str | None, read: Callable[[str, str | None], pa.Table]
) -> pa.Table:
    """The joined manifest.

    Args:
        plan: a checked one, of `find_transfer`.
        root: the folder that holds every dataset that `plan.roots` does not name.
        read: (name, root) -> manifest of one dataset.
    """
    assert plan.target is not None
    for name in (*plan.sources, plan.target):
        base = bare_name(name)
        if not root and base not in plan.roots:
            raise UserError(
                f"{plan}: where is {base}? Give data.roots.{base}=PATH, or data.root=PATH, the "
                "folder that holds all of them"
            )
    *sources, target = (
        read(name, plan.roots.get(bare_name(name), root)) for name in (*plan.sources, plan.target)
    )
    return join_manifests(sources, target, source_images=plan.source_images)


def bare_name(name: str) -> str:
    """`NAME` of `NAME:VARIANT`."""
    return name.partition(":")[0]


def describe_transfers(find: Callable[[str], tuple[Dataset, str]]) -> dict[str, Dataset]:
    """What each named protocol says of itself, after its datasets; `find` knows those by name."""
    return {name: _describe(plan, source, find) for name, (plan, source) in TRANSFERS.items()}


ANY_TRANSFER = Dataset(
    title="any datasets to any other",
    layout="data.sources and data.target name them; data.roots says where each lies, data.root "
    "where all do",
    read=None,
    terms="those of the datasets",
)


def _describe(plan: Transfer, source: str, find: Callable[[str], tuple[Dataset, str]]) -> Dataset:
    assert plan.target is not None
    trained = [find(name) for name in plan.sources]
    target, variant = find(plan.target)
    tested = target.variants[variant]
    taken = [dataset.variants[variant] for dataset, variant in trained]
    titles = " + ".join(dataset.title for dataset, _ in trained)
    terms = (f"{dataset.title}: {dataset.terms}" for dataset in (*(d for d, _ in trained), target))
    train = [one.counts["train"] for one in taken]
    return Dataset(
        title=f"{titles} to {target.title}",
        layout="each dataset as it is by itself, in one folder or where data.roots says",
        read=None,
        source=source,
        protocol=target.protocol,
        protocol_note=f"Trained on {' + '.join(plan.sources)} and nothing else, tested on "
        f"{plan.target}. What is to be known of each stands with it.",
        terms="; ".join(terms),
        variants={
            PLAIN: Variant(
                counts={
                    "train": Count(
                        images=_sum(count.images for count in train),
                        identities=_sum(count.identities for count in train),
                    ),
                    **{split: tested.counts[split] for split in ("query", "gallery")},
                },
                cameras=_sum(one.cameras for one in (*taken, tested)),
                junk=tested.junk,
                distractors=tested.distractors,
            )
        },
    )


def _sum(values: Iterable[int | None]) -> int | None:
    known = list(values)
    return None if None in known else sum(value or 0 for value in known)


def _check_names(name: str, plan: Transfer) -> None:
    assert plan.target is not None
    names = (*plan.sources, plan.target)
    bases = [bare_name(one) for one in names]
    for base in bases:
        if base == ANY or base in TRANSFERS:
            raise UserError(f"{plan}: {base} is joined itself; name the datasets that it joins")
    _refuse_twice([[base] for base in bases])
    for base in plan.roots:
        if base not in bases:
            raise UserError(
                f"data.roots.{base}: dataset={name} joins {', '.join(bases)}; "
                "give places of these, by name without a variant"
            )


def _refuse_twice(groups: Sequence[Sequence[str]]) -> None:
    """`groups`: the domains of every source, and of the target last."""
    *sources, target = groups
    seen: set[str] = set()
    for domains in sources:
        for domain in domains:
            if domain in target:
                raise UserError(
                    f"{domain} is a source and the target; its own people would be known, "
                    "take another target"
                )
            if domain in seen:
                raise UserError(f"{domain} is among the sources twice; name it once")
        seen.update(domains)


def _domains(table: pa.Table) -> list[str]:
    return sorted(pc.unique(table["domain"]).to_pylist())


def _listed(tables: Sequence[pa.Table]) -> str:
    return " + ".join(domain for table in tables for domain in _domains(table))


def _trained(table: pa.Table, source_images: SourceImages) -> pa.Table:
    train = pc.equal(table["split"], "train")
    if source_images == "train":
        return table.filter(train)
    rows = table.filter(pc.or_(train, pc.equal(table["role"], "normal")))
    place = rows.schema.get_field_index("split")
    return rows.set_column(place, "split", pa.repeat("train", len(rows)))
