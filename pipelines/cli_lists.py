"""`reid datasets`, `reid recipes`, `reid models`: what there is."""

import click

from pipelines.console import emit


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object on the last line of stdout.")
def datasets(as_json: bool) -> None:
    """The layouts that images can lie in.

    \b
    Example: reid datasets
    """
    from pipelines.datasets import list_datasets

    found = list_datasets()
    if as_json:
        emit({"datasets": [{"name": name, "layout": text} for name, text in found.items()]})
        return
    for name, text in found.items():
        click.echo(f"{name:<18}{text}")


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on the last line of stdout.")
def recipes(name: str | None, as_json: bool) -> None:
    """The recipes that come along, or one of them with every key.

    \b
    Example: reid recipes fusion_reid > mine.yaml
    """
    from pipelines.recipe_file import dump_recipe, list_recipes, load_recipe

    if name is not None:
        recipe = load_recipe(name)
        if as_json:
            emit(recipe.to_dict())
        else:
            click.echo(dump_recipe(recipe), nl=False)
        return
    if as_json:
        emit({"recipes": list_recipes()})
        return
    for found in list_recipes():
        click.echo(found)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object on the last line of stdout.")
def models(as_json: bool) -> None:
    """The systems, at their default options: size, cost, embedding.

    \b
    Example: reid models
    """
    from dataclasses import asdict

    import torch

    import reid_models
    from reid_models import create_model, profile_model

    rows = []
    for name in reid_models.list_models():
        with torch.device("meta"):
            model = create_model(name, 751, image_size=(256, 128), camera_count=6)
            rows.append({"name": name, **asdict(profile_model(model))})
    if as_json:
        emit({"models": rows})
        return
    for row in rows:
        click.echo(
            f"{row['name']:<18}{row['params'] / 1e6:8.1f} M parameters  {row['gmac']:6.1f} GMAC  "
            f"embedding {row['embedding_dim']}  input {row['image_size']}"
        )


COMMANDS = (datasets, recipes, models)
