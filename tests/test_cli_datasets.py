"""`reid datasets` and `reid datasets check`."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from pipelines.cli import reid
from pipelines.datasets import list_datasets
from pipelines.errors import UserError
from tests.commands import REID, answer


def run(*args: object) -> Result:
    return CliRunner().invoke(reid, ["datasets", *map(str, args)])


def test_the_list_says_all_of_a_dataset_in_lines_of_100() -> None:
    done = run()
    assert done.exit_code == 0
    assert max(map(len, done.output.splitlines())) <= 100
    blocks = {block.partition(":")[0]: block for block in done.output.split("\n\n")}
    assert list(blocks) == list(list_datasets())
    for name, dataset in list_datasets().items():
        words = " ".join(blocks[name].split())
        for text in (dataset.title, dataset.layout, dataset.source, dataset.terms):
            assert text in words
        assert f"protocol {dataset.protocol}" in words
        assert dataset.protocol_note in words
        for variant, said in dataset.variants.items():
            full = f"{name}:{variant}" if variant else name
            assert said.text in words
            if said.counts:
                (line,) = (line for line in blocks[name].splitlines() if line.split()[0] == full)
                for count in said.counts.values():
                    assert f"  {count.images:,}" in line
                    assert count.identities is None or f"/ {count.identities:,}" in line


def test_the_list_names_withdrawal_and_every_figure() -> None:
    output = run().output
    assert "withdrawn by its owners in 2019 for privacy; never fetched by this program" in output
    line = next(line for line in output.splitlines() if line.startswith("    market1501  "))
    assert " ".join(line.split()) == (
        "market1501 12,936 / 751 3,368 / 750 19,732 / 750 6 3,819 2,798"
    )


def test_the_list_in_json() -> None:
    found = {entry.pop("name"): entry for entry in answer("datasets")["datasets"]}
    assert list(found) == list(list_datasets())
    for name, dataset in list_datasets().items():
        entry = found[name]
        variants = entry.pop("variants")
        assert entry == {field: getattr(dataset, field) for field in entry}
        assert set(entry) == {"title", "layout", "source", "protocol", "protocol_note", "terms"}
        assert list(variants) == list(dataset.variants)
    assert "withdrawn" in found["dukemtmc"]["terms"]
    answered = answer("datasets")["datasets"]
    market = next(entry for entry in answered if entry["name"] == "market1501")
    assert market["variants"][""] == {
        "text": "",
        "counts": {
            "train": {"images": 12_936, "identities": 751},
            "query": {"images": 3_368, "identities": 750},
            "gallery": {"images": 19_732, "identities": 750},
        },
        "cameras": 6,
        "junk": 3_819,
        "distractors": 2_798,
    }


@pytest.fixture
def crops(image_folder: Callable[..., Path]) -> Path:
    return image_folder(identities=4)


def test_check_prints_counts_and_notes(crops: Path) -> None:
    (crops / "p000" / "Thumbs.db").touch()
    done = run("check", "identity_folders", crops)
    assert done.exit_code == 0
    assert "train images" in done.stdout
    assert "note: 1 other file beside the images, passed over" in done.stdout.splitlines()
    assert done.stderr.splitlines()[-1] == f"identity_folders at {crops}: no problem"


def test_check_in_json(crops: Path) -> None:
    found = answer("datasets", "check", "identity_folders", crops)
    counts = found.pop("counts")
    assert found == {
        "dataset": "identity_folders",
        "root": str(crops),
        "problems": [],
        "notes": [],
        "ok": True,
    }
    assert {"train", "query", "gallery", "all"} == set(counts)
    images = sum(counts[split]["images"]["found"] for split in ("train", "query", "gallery"))
    assert images == 16
    assert counts["all"]["cameras"] == {"found": 2, "official": None}


def test_check_leaves_with_2_where_something_is_wrong(crops: Path) -> None:
    path = crops / "p001" / "c1_0.jpg"
    path.write_bytes(path.read_bytes()[:200])
    other = crops / "p002" / "c1_0.jpg"
    other.write_bytes((crops / "p002" / "c1_1.jpg").read_bytes())
    done = subprocess.run(
        [*REID, "datasets", "check", "identity_folders", str(crops), "--json"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["ok"] is False
    assert len(found["problems"]) == 1
    assert found["problems"][0].startswith("1 file cannot be used as images: p001/c1_0.jpg (")
    assert len(found["notes"]) == 1
    last = done.stderr.splitlines()[-1]
    assert last == f"reid: identity_folders at {crops}: {found['problems'][0]}"

    done = run("check", "identity_folders", crops)
    assert isinstance(done.exception, UserError)
    assert f"problem: {found['problems'][0]}" in done.stdout.splitlines()
    assert f"note: {found['notes'][0]}" in done.stdout.splitlines()


def test_check_without_opening_images(crops: Path) -> None:
    (crops / "p001" / "c1_0.jpg").write_text("moved")
    found = answer("datasets", "check", "identity_folders", crops, "--no-images")
    assert found["ok"]
    assert found["notes"] == ["images were not opened: damage and copies were not looked for"]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("check", "market", "/"), "did you mean market1501?"),
        (("check", "market1501:600k", "/"), "market1501:500k"),
        (("check", "market1501", "/nosuch"), "/nosuch: no such folder"),
        (("check", "market1501"), "Missing argument 'ROOT'"),
        (("chek",), "No such command 'chek'"),
        (("--json", "check", "market1501", "/"), "give --json behind `reid datasets check`"),
    ],
)
def test_refuses(args: tuple[str, ...], says: str) -> None:
    with pytest.raises((UserError, click.ClickException)) as raised:
        reid.main(["datasets", *args], standalone_mode=False)
    mistake = raised.value
    line = str(mistake) if isinstance(mistake, UserError) else mistake.format_message()
    assert says in line
    assert "\n" not in line
