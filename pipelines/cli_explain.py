"""`reid explain`: where a trained model looks in an image."""

from pathlib import Path
from typing import Any

import click

from pipelines.console import Reporter, emit
from pipelines.stage import common_options


@click.command()
@click.argument("source", metavar="RECIPE|MODEL")
@click.argument("image", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--camera", help="Camera of the image, where the model was trained with it.")
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    help="Another image: what makes the two alike, instead of what makes up the first.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="PNG to write; by default explain-IMAGE.png in this folder.",
)
@common_options
def explain(
    source: str,
    image: Path,
    overrides: tuple[str, ...],
    camera: str | None,
    against: Path | None,
    output: Path | None,
    store_uri: str,
    as_json: bool,
    verbose: bool,
) -> None:
    """Draw where a trained model looks: attention and Grad-CAM over the image.

    MODEL is a folder with a trained model, or models:/NAME@ALIAS in the registry of the store; a
    RECIPE must have been trained in the store.

    \b
    Example: reid explain demo person.jpg --store ./demo --output looks.png
    """
    from pipelines.explain_picture import check_output, draw_explanation

    path = output or Path(f"explain-{image.stem}.png")
    check_output(path)
    from pipelines.explain import explain as explain_image
    from pipelines.model_source import open_model

    embedder = open_model(source, overrides, store_uri)
    seen = explain_image(embedder, image, camera=camera, against=against)
    draw_explanation(path, seen, heading=_heading(embedder.card, image, camera, against, seen))
    Reporter(verbose=verbose).say(f"{len(seen.heats)} views of {image}: {path}")
    if as_json:
        emit(
            {
                "picture": str(path),
                "similarity": seen.similarity,
                "views": [
                    {"title": heat.title, "values": heat.values_hw.astype(float).tolist()}
                    for heat in seen.heats
                ],
            }
        )


def _heading(
    card: Any, image: Path, camera: str | None, against: Path | None, seen: Any
) -> list[str]:
    known = camera is not None and camera in card.cameras
    first = f"{card.model}: {image.name}, camera {camera if known else 'unknown'}"
    if against is None:
        return [first, "Grad-CAM: what makes up the embedding"]
    return [
        f"{first}, against {against.name}: cosine {seen.similarity:.3f}",
        "Grad-CAM: what makes the two alike",
    ]


COMMANDS = (explain,)
