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
    """Draw where a trained model looks in an image.

    The picture shows attention and Grad-CAM, as far as the model has them. MODEL is a folder with a
    trained model, or models:/NAME@ALIAS in the registry of the store; a RECIPE must have been
    trained in the store.

    \b
    Example: reid explain demo person.jpg --store ./demo --output looks.png
    """
    from pipelines.explain_picture import check_output, draw_explanation

    path = output or Path(f"explain-{image.stem}.png")
    check_output(path, [image] if against is None else [image, against])
    from pipelines.explain import explain as explain_image
    from pipelines.model_source import open_model

    embedder = open_model(source, overrides, store_uri)
    seen = explain_image(embedder, image, camera=camera, against=against)
    draw_explanation(path, seen, heading=_heading(embedder.card, image, camera, against, seen))
    count = len(seen.heats)
    Reporter(verbose=verbose).say(f"{count} view{'s' * (count > 1)} of {image}: {path}")
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
    seen_by = "camera unknown"
    if camera is not None:
        known = camera in card.cameras
        seen_by = f"camera {camera}" + ", which training did not know" * (not known)
    first = f"{card.model}: {image.name}, {seen_by}"
    if against is not None:
        first += f", against {against.name}: cosine {seen.similarity:.3f}"
    if not any(heat.title.startswith("Grad-CAM") for heat in seen.heats):
        return [first]
    asked = "what makes up the embedding" if against is None else "what makes the two alike"
    return [first, f"Grad-CAM: {asked}"]


COMMANDS = (explain,)
