"""A trained model becomes a version: once for the same weights and gallery, however often tried.

The steps (logged model, its files, version, alias) are each looked for before they are made, so
that a command that was killed between any two of them goes on where it stopped.
"""

import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsspec.implementations.local import LocalFileSystem

from pipelines.errors import UserError
from pipelines.registry.packing import check_weights, checked_card, packed_model
from pipelines.registry.promotion import COMPARABLE, METRIC, challenge, search_versions
from pipelines.registry.tracker import Tracker
from pipelines.store import fingerprint, sha256_file

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion

REQUIRED_TAGS = (*COMPARABLE, "gallery")
REGISTRATION = "registration"
NAME = re.compile(r"[\w.-]+")


def register_model(
    tracker: Tracker,
    run_id: str,
    *,
    name: str,
    weights: Path,
    recipe_yaml: str,
    model_card: Mapping[str, Any],
    metrics: Mapping[str, float],
    tags: Mapping[str, str],
) -> int:
    """Make a version of these weights with this gallery and call it `challenger`; its number.

    `weights` is a safetensors file, `recipe_yaml` a recipe's text, `model_card` the content of
    `pipelines.embedder.ModelCard`.
    `tags` has at least `data_fingerprint` (of the data that the metrics were measured on),
    `protocol` and `gallery`; the checksum of the weights is added.

    The same weights with the same gallery are registered once: a repeated call brings the tags of
    the existing version up to date and returns its number. Raises `UserError` for a name that
    MLflow would refuse or a damaged weights file, `ValueError` for missing tags, an incomplete
    card, or weights whose checksum is not the `weights_sha256` tag.
    """
    if not NAME.fullmatch(name):
        raise UserError(f"{name!r}: a model name has letters, digits, '.', '_' and '-' only")
    card = checked_card(model_card)
    checksum = _checked_sha256(weights, tags)
    registration = fingerprint(name, checksum, tags["gallery"])
    lineage = {key: str(value) for key, value in tags.items()} | {"weights_sha256": checksum}
    version_tags = lineage | {f"{METRIC}{key}": repr(float(v)) for key, v in metrics.items()}
    found = search_versions(tracker, f"name = '{name}' and tags.{REGISTRATION} = '{registration}'")
    if found:
        version = found[0]
        for key, value in version_tags.items():
            if version.tags.get(key) != value:
                tracker.client.set_model_version_tag(name, str(version.version), key, value)
    else:
        logged = _logged_model(tracker, run_id, registration, card.model)
        if logged.status != "READY":
            with packed_model(
                weights=weights,
                recipe_yaml=recipe_yaml,
                card=card,
                metadata={**lineage, "metrics": dict(metrics)},
                logged_model=logged,
            ) as folder:
                tracker.client.log_model_artifacts(logged.model_id, str(folder))
            _finish(tracker, run_id, logged, metrics)
        version_tags[REGISTRATION] = registration
        version = _create_version(tracker, run_id, name, logged, version_tags)
    challenge(tracker, version)
    return int(version.version)


def _checked_sha256(weights: Path, tags: Mapping[str, str]) -> str:
    """Checksum of a whole weights file; an error for tags that are missing or say another one."""
    if missing := [key for key in REQUIRED_TAGS if not tags.get(key)]:
        raise ValueError(f"tags of a model version: {missing} missing in {dict(tags)}")
    check_weights(weights)
    checksum = sha256_file(LocalFileSystem(), str(weights))
    if tags.get("weights_sha256", checksum) != checksum:
        raise ValueError(f"{weights}: SHA-256 is {checksum}, not {tags['weights_sha256']}")
    return checksum


def _logged_model(
    tracker: Tracker, run_id: str, registration: str, architecture: str
) -> "LoggedModel":
    """The logged model of this registration; a killed run may have left it without its files."""
    found = tracker.client.search_logged_models(
        [tracker.experiment_id], filter_string=f"tags.{REGISTRATION} = '{registration}'"
    )
    for status in ("READY", "PENDING"):
        for model in found:
            if model.status == status:
                return model
    return tracker.client.create_logged_model(
        tracker.experiment_id,
        name=architecture,
        source_run_id=run_id,
        tags={REGISTRATION: registration},
        model_type="reid",
    )


def _finish(
    tracker: Tracker, run_id: str, logged: "LoggedModel", metrics: Mapping[str, float]
) -> None:
    """Tie the metrics and the run to the logged model, and declare it whole."""
    from mlflow.entities import LoggedModelOutput, Metric

    now = int(time.time() * 1000)
    points = [
        Metric(key, float(value), now, 0, model_id=logged.model_id)
        for key, value in metrics.items()
    ]
    tracker.client.log_batch(run_id, metrics=points)
    tracker.client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    tracker.client.finalize_logged_model(logged.model_id, "READY")


def _create_version(
    tracker: Tracker, run_id: str, name: str, logged: "LoggedModel", tags: Mapping[str, str]
) -> "ModelVersion":
    from mlflow.exceptions import MlflowException

    try:
        tracker.client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    # Not `models:/ID`: the SQL registry would look that up at the process-wide tracking URI.
    return tracker.client.create_model_version(
        name, logged.artifact_location, run_id, tags=dict(tags), model_id=logged.model_id
    )
