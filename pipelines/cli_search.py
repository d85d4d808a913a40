"""`reid search`: images against a gallery."""

from pathlib import Path

import click

from pipelines.console import emit
from pipelines.errors import UserError


@click.command()
@click.argument("gallery_uri", metavar="GALLERY")
@click.argument(
    "images", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="IMAGE..."
)
@click.option(
    "--top-k", default=10, show_default=True, type=click.IntRange(1), help="Hits an image."
)
@click.option("--camera", help="Camera of the images, where the model was trained with it.")
@click.option("--model", "model_folder", help="Folder of the gallery's model, if it was moved.")
@click.option(
    "--rerank",
    is_flag=True,
    help="Reorder the hits by their neighbours in the gallery; some thousand look-ups an image.",
)
@click.option(
    "--candidates",
    type=click.IntRange(1),
    help="With --rerank: how many of the most similar are reordered, by default 100.",
)
@click.option(
    "--picture",
    type=click.Path(path_type=Path),
    help="Write the hits of the (first) image as a PNG.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on the last line of stdout.")
def search(
    gallery_uri: str,
    images: tuple[Path, ...],
    top_k: int,
    camera: str | None,
    model_folder: str | None,
    rerank: bool,
    candidates: int | None,
    picture: Path | None,
    as_json: bool,
) -> None:
    """Who is this? The most similar gallery images.

    Hits have the cosine as their score; with --rerank, minus the final distance.

    \b
    Example: reid search ./store/galleries/demo-drawn-0123456789ab person.jpg --picture hits.png
    """
    if candidates is not None and not rerank:
        raise UserError(f"--candidates {candidates} goes with --rerank: give both or neither")
    from pipelines.gallery import Reranking
    from pipelines.search import as_results
    from pipelines.search import search as search_gallery

    settings = Reranking(candidates=candidates) if candidates is not None else Reranking()
    hits = search_gallery(
        gallery_uri,
        list(images),
        top_k=top_k,
        camera=camera,
        model=model_folder,
        rerank=settings if rerank else False,
    )
    if picture is not None:
        from pipelines.contact_sheet import contact_sheet

        contact_sheet(picture, str(images[0]), hits[0], reranked=rerank)
    results = as_results(list(images), hits, reranked=rerank)
    if as_json:
        emit({"results": results, "picture": str(picture) if picture else None})
        return
    for result in results:
        click.echo(result["query"] + "  (re-ranked: minus the final distance)" * rerank)
        for place, hit in enumerate(result["hits"], start=1):
            click.echo(
                f"{place:4d}  {hit['score']:.4f}  id {hit['id']}  "
                f"{hit['identity']}  {hit['camera']}  {hit['key']}"
            )


COMMANDS = (search,)
