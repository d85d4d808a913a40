"""One run a pipeline run, nested runs a stage, written by the driver alone.

A run is named by its id in every call. A command that was killed finds its run by the fingerprint
tag and goes on in it: points of a curve that are already there are not written twice, and a
parameter keeps its first value (MLflow never changes one), with the later values in the tag
`params_changed`.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pipelines.registry.backend import Backend

if TYPE_CHECKING:
    from mlflow import MlflowClient

MetricRow = tuple[str, float, int, int]
"""Name, value, step, time in milliseconds since 1970."""

METRICS_A_CALL = 1000
PARAMS_A_CALL = 100
PARAM_LIMIT = 6000
TAG_LIMIT = 8000
KEY_LIMIT = 250
DIGEST_LIMIT = 36
PARENT = "mlflow.parentRunId"
FORBIDDEN_IN_KEYS = re.compile(r"[^/\w.\- :]")

Item = TypeVar("Item")


class Tracker:
    """Writes runs into one MLflow experiment."""

    def __init__(self, *, client: "MlflowClient", experiment_id: str, backend: Backend) -> None:
        self.client = client
        """For what this class does not wrap."""
        self.experiment_id = experiment_id
        self.backend = backend
        self._reopened: dict[str, dict[str, set[tuple[int, float]]]] = {}

    @classmethod
    def open(cls, store_folder: str, *, experiment: str = "rayreid") -> "Tracker":
        """The tracker of MLFLOW_TRACKING_URI, or of the database in this store, created once.

        Raises `UserError` where the database cannot be written or the server does not answer.
        """
        backend = Backend.locate(store_folder)
        client, experiment_id = backend.connect(experiment)
        return cls(client=client, experiment_id=experiment_id, backend=backend)

    @property
    def uri(self) -> str:
        """What another process sets MLFLOW_TRACKING_URI to."""
        return self.backend.tracking_uri

    def find_run(self, tags: Mapping[str, str]) -> str | None:
        """Id of the newest run that carries all these tags."""
        runs = self.client.search_runs(
            [self.experiment_id],
            filter_string=" and ".join(f"tags.`{k}` = {_quoted(v)}" for k, v in tags.items()),
            order_by=["attributes.start_time DESC"],
            max_results=1,
        )
        return str(runs[0].info.run_id) if runs else None

    def start_run(
        self,
        name: str,
        *,
        parent: str | None = None,
        run_id: str | None = None,
        tags: Mapping[str, str] | None = None,
        params: Mapping[str, object] | None = None,
    ) -> str:
        """Create a run, or go on in the run of this id, and return its id."""
        all_tags = dict(tags or {}) | ({PARENT: parent} if parent else {})
        if run_id is None:
            run = self.client.create_run(
                self.experiment_id, run_name=name, tags=_cut_tags(all_tags)
            )
            run_id = str(run.info.run_id)
        else:
            self.client.update_run(run_id, status="RUNNING", name=name)
            self.set_tags(run_id, all_tags)
            self._reopened[run_id] = {}
        self.log_params(run_id, params or {})
        return run_id

    def end_run(self, run_id: str, status: str = "FINISHED") -> None:
        """Close the run as FINISHED, FAILED or KILLED."""
        self.client.set_terminated(run_id, status)

    def log_metrics(self, run_id: str, rows: Sequence[MetricRow]) -> None:
        """Write points of curves, a thousand a call.

        In a reopened run, a point with the same name, step and value as an earlier one is left out:
        training repeats the steps between its last checkpoint and the kill.
        """
        from mlflow.entities import Metric

        fresh = [row for row in rows if not self._is_logged(run_id, row)]
        for chunk in _chunks(fresh, METRICS_A_CALL):
            metrics = [Metric(name, float(value), time, step) for name, value, step, time in chunk]
            self.client.log_batch(run_id, metrics=metrics)

    def log_params(self, run_id: str, params: Mapping[str, object]) -> None:
        """Write parameters, nested ones as `a.b.c`.

        A value beyond MLflow's limit is cut, and the whole of `params` is kept as `params.json`.
        """
        from mlflow.entities import Param

        flat = flatten(params)
        if not flat:
            return
        if any(len(value) > PARAM_LIMIT for value in flat.values()):
            self.log_dict(run_id, flat, "params.json")
        flat = {key: _cut(value, PARAM_LIMIT) for key, value in flat.items()}
        known = self.client.get_run(run_id).data.params
        fresh = [Param(key, value) for key, value in flat.items() if key not in known]
        for chunk in _chunks(fresh, PARAMS_A_CALL):
            self.client.log_batch(run_id, params=chunk)
        changed = {key: value for key, value in flat.items() if known.get(key, value) != value}
        if changed:
            self.set_tags(run_id, {"params_changed": json.dumps(changed, sort_keys=True)})

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set or replace tags."""
        from mlflow.entities import RunTag

        entities = [RunTag(key, value) for key, value in _cut_tags(tags).items()]
        for chunk in _chunks(entities, PARAMS_A_CALL):
            self.client.log_batch(run_id, tags=chunk)

    def log_dataset(
        self,
        run_id: str,
        *,
        name: str,
        fingerprint: str,
        source: str,
        profile: Mapping[str, object] | None = None,
        context: str = "training",
    ) -> None:
        """Note the data as an input of the run, and its whole fingerprint as a tag.

        `source` is the URI of the blocks, `profile` their counts. MLflow's digest holds the first
        36 characters of the fingerprint.
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name=name,
            digest=fingerprint[:DIGEST_LIMIT],
            source_type="local" if "://" not in source else source.split("://", 1)[0],
            source=json.dumps({"uri": source}),
            profile=json.dumps(dict(profile or {}), sort_keys=True),
        )
        role = InputTag("mlflow.data.context", context)
        self.client.log_inputs(run_id, [DatasetInput(dataset=dataset, tags=[role])])
        self.set_tags(run_id, {"data_fingerprint": fingerprint})

    def log_artifact_file(self, run_id: str, path: Path, folder: str | None = None) -> None:
        """Copy a file into the run's artifacts, under its own name."""
        self.client.log_artifact(run_id, str(path), folder)

    def log_dict(self, run_id: str, value: Mapping[str, Any], artifact_file: str) -> None:
        """Keep a mapping as JSON or YAML, by the ending of `artifact_file`."""
        self.client.log_dict(run_id, dict(value), artifact_file)

    def log_bytes(self, run_id: str, data: bytes, artifact_file: str) -> None:
        """Keep bytes, such as a drawn plot, as `artifact_file`."""
        self.client.log_stream(run_id, BytesIO(data), artifact_file)

    def _is_logged(self, run_id: str, row: MetricRow) -> bool:
        if run_id not in self._reopened:
            return False
        name, value, step, _ = row
        curves = self._reopened[run_id]
        if name not in curves:
            history = self.client.get_metric_history(run_id, name)
            curves[name] = {(point.step, point.value) for point in history}
        return (step, float(value)) in curves[name]


def flatten(params: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """Nested parameters as dotted keys and text: strings as they are, all else as JSON."""
    flat: dict[str, str] = {}
    for key, value in params.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            flat[FORBIDDEN_IN_KEYS.sub("_", name)[:KEY_LIMIT]] = text
    return flat


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def _cut_tags(tags: Mapping[str, str]) -> dict[str, str]:
    return {key: _cut(str(value), TAG_LIMIT) for key, value in tags.items()}


def _chunks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _quoted(value: str) -> str:
    """A string of MLflow's filter language, which knows two quotes and no escape."""
    quote = '"' if "'" in value else "'"
    if quote in value:
        raise ValueError(f"cannot search for a tag with both kinds of quotes: {value}")
    return f"{quote}{value}{quote}"
