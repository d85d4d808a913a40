"""Query images against a gallery: the model that made the gallery embeds them."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipelines.embedder import WEIGHTS, Embedder, ModelCard, default_device
from pipelines.errors import UserError
from pipelines.gallery import Gallery, Hit, Reranking, open_gallery
from pipelines.images import ImageError
from pipelines.store import Folder, sha256_file


def open_query_model(gallery: Gallery, model_folder: str | None = None) -> Embedder:
    """The model whose embeddings the gallery holds, or the one in `model_folder`.

    A `UserError` says where another model than the gallery's is given, or the gallery's own is
    gone.
    """
    made_by = gallery.manifest.model
    if "card" not in made_by:
        raise UserError(
            f"{gallery.folder.uri} was built from embeddings of an unknown model; "
            "search it from Python with your own embeddings"
        )
    folder = Folder.open(model_folder or made_by["folder"])
    if not folder.exists(WEIGHTS):
        raise UserError(
            f"{folder.uri}: no {WEIGHTS}; name the folder of the gallery's model with --model"
        )
    if sha256_file(folder.fs, folder.path(WEIGHTS)) != made_by["weights_sha256"]:
        card = ModelCard.from_dict(folder.read_json("card.json"))
        raise UserError(
            f"{folder.uri}/{WEIGHTS} ({card.embedding_dim} dimensions) is not the model of "
            f"{gallery.folder.uri} ({gallery.embedding_dim} dimensions); embed the gallery again "
            "or name its own model with --model"
        )
    return Embedder(ModelCard.from_dict(made_by["card"]), folder.local(WEIGHTS), default_device())


def search_images(
    gallery: Gallery,
    embedder: Embedder,
    images: list[Path],
    *,
    camera: str | None,
    top_k: int,
    rerank: bool | Reranking = False,
) -> list[list[Hit]]:
    """The best hits of every image; a `UserError` names an image that cannot be used."""
    vectors = []
    for path in images:
        try:
            vectors.append(embedder.embed_files([path.read_bytes()], [camera])[0])
        except (ImageError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise UserError(f"{path}: {reason}") from error
    return gallery.search(vectors, top_k=top_k, rerank=rerank)


def as_results(
    images: list[Path], hits: list[list[Hit]], *, reranked: bool
) -> list[dict[str, Any]]:
    """`[{query, reranked, hits: [{id, key, identity, camera, score, uri}]}]`."""
    return [
        {"query": str(image), "reranked": reranked, "hits": [asdict(hit) for hit in found]}
        for image, found in zip(images, hits, strict=True)
    ]


def search(
    gallery_uri: str,
    images: list[Path],
    *,
    top_k: int = 10,
    camera: str | None = None,
    model: str | None = None,
    rerank: bool | Reranking = False,
) -> list[list[Hit]]:
    """Open the gallery and its model, and search."""
    gallery = open_gallery(gallery_uri)
    embedder = open_query_model(gallery, model)
    return search_images(gallery, embedder, images, camera=camera, top_k=top_k, rerank=rerank)
