"""Imports go down only, and the lower rooms do not know the heavy tools."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = [
    {"reid_models"},
    {"tune_spaces"},
    {
        "pipelines.errors",
        "pipelines.counter_random",
        "pipelines.environment",
        "pipelines.checkpoints",
        "pipelines.safe_yaml",
    },
    {"pipelines.recipe_sections", "pipelines.recipe_training", "pipelines.engine"},
    {"pipelines.images", "pipelines.recipe", "pipelines.store", "pipelines.console"},
    {"pipelines.section_check", "pipelines.experiments"},
    {"pipelines.datasets"},
    {"pipelines.recipe_file", "pipelines.ray_session", "pipelines.augment", "pipelines.stage"},
    {"pipelines.embedding_parts"},
    {"pipelines.blocks", "pipelines.retrieval", "pipelines.embedder"},
    {"pipelines.pack", "pipelines.embed_parts", "pipelines.clustering", "pipelines.rank_job"},
    {
        "pipelines.ingest",
        "pipelines.identity_index",
        "pipelines.gallery",
        "pipelines.registry",
        "pipelines.training_fingerprint",
    },
    {"pipelines.batches"},
    {"pipelines.feed", "pipelines.validation", "pipelines.tracking", "pipelines.pyfunc_model"},
    {"pipelines.train_job"},
    {"pipelines.train_loop"},
    {"pipelines.fit"},
    {"pipelines.train"},
    {"pipelines.tune", "pipelines.embed"},
    {
        "pipelines.evaluate",
        "pipelines.thumbnails",
        "pipelines.figures_text",
        "pipelines.report_plots",
    },
    {"pipelines.gallery_build", "pipelines.search", "pipelines.report", "pipelines.contact_sheet"},
    {"pipelines.register", "pipelines.results"},
    {"pipelines.run"},
    {"pipelines.explain", "pipelines.model_source"},
    {"pipelines.explain_picture"},
    {
        "pipelines.cli_datasets",
        "pipelines.cli_lists",
        "pipelines.cli_registry",
        "pipelines.cli_search",
        "pipelines.cli_explain",
        "pipelines.cli_import",
    },
    {"pipelines.cli"},
    {"pipelines.__main__"},
]
FLOOR = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
FORBIDDEN = {
    "reid_models": {"ray", "mlflow", "faiss", "pipelines", "tune_spaces"},
    "pipelines.engine": {"ray", "mlflow", "faiss"},
    "pipelines.retrieval": {"ray", "mlflow", "faiss"},
}
SOURCES = sorted(
    p for name in ("reid_models", "pipelines", "tune_spaces") for p in (ROOT / name).rglob("*.py")
)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    head = module.split(".")
    return head[0] if head[0] != "pipelines" else ".".join(head[:2])


def imported(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
            if node.module == "pipelines":
                found |= {f"pipelines.{alias.name}" for alias in node.names}
    return found - {"pipelines"}


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_go_down(path: Path) -> None:
    room = room_of(module_name(path))
    if room == "pipelines":
        return
    assert room in FLOOR, f"{room} has no floor"
    for module in imported(path):
        other = room_of(module)
        if module.split(".")[0] in ("pipelines", "reid_models", "tune_spaces") and other != room:
            assert FLOOR[other] <= FLOOR[room], f"{room} imports {other}"
            assert FLOOR[other] < FLOOR[room] or not imports_back(other, room), (
                f"{room} <-> {other}"
            )
        for name, tools in FORBIDDEN.items():
            if room == name:
                assert module.split(".")[0] not in tools, f"{room} imports {module}"


def imports_back(room: str, other: str) -> bool:
    paths = [p for p in SOURCES if room_of(module_name(p)) == room]
    return any(room_of(module) == other for p in paths for module in imported(p))


@pytest.mark.parametrize("module", ["pipelines.pack", "pipelines.feed", "pipelines.embed_parts"])
def test_data_workers_import_no_torch(module: str) -> None:
    """Ray starts a process for every slot; torch in each would cost a gigabyte and seconds."""
    probe = (
        f"import sys, {module}; print([m for m in ('torch', 'timm', 'mlflow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
