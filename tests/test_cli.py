"""The command line: every command explains itself, and the README names only what there is."""

import json
import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from pipelines.cli import reid

README = Path(__file__).parent.parent / "README.md"


def leaves(group: click.Group, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for name, command in group.commands.items():
        here = (*path, name)
        found += leaves(command, here) if isinstance(command, click.Group) else [here]
    return found


@pytest.mark.parametrize("path", leaves(reid), ids=" ".join)
def test_help_has_an_example_of_this_very_command(path: tuple[str, ...]) -> None:
    result = CliRunner().invoke(reid, [*path, "--help"])
    assert result.exit_code == 0
    assert f"Example: reid {' '.join(path)}" in result.output
    assert "--json" in result.output


def test_readme_names_only_commands_that_exist() -> None:
    known = {path[0] for path in leaves(reid)}
    named = set(re.findall(r"(?<!\w)reid ([a-z]+)\b", README.read_text(encoding="utf-8")))
    assert named
    assert named <= known


def test_lists_answer_in_json() -> None:
    names = {
        command: CliRunner().invoke(reid, [command, "--json"]).output.splitlines()[-1]
        for command in ("datasets", "recipes")
    }
    assert {"drawn", "market1501", "pku_reid", "identity_folders", "table"} <= {
        entry["name"] for entry in json.loads(names["datasets"])["datasets"]
    }
    assert {"demo", "fusion_reid"} <= set(json.loads(names["recipes"])["recipes"])


def test_models_are_listed_with_size_and_cost() -> None:
    answer = json.loads(CliRunner().invoke(reid, ["models", "--json"]).output.splitlines()[-1])
    row = next(row for row in answer["models"] if row["name"] == "fusion_reid")
    assert row["params"] == 158_456_903
    assert row["embedding_dim"] == 5888
    assert row["gmac"] == pytest.approx(29.07, abs=0.01)
    row = next(row for row in answer["models"] if row["name"] == "la_transformer")
    assert row["image_size"] == [224, 224]
    assert row["gmac"] == pytest.approx(17.56, abs=0.1)
