"""Which MLflow to talk to, and how its database comes into being.

`MLFLOW_TRACKING_URI` names the server or database if it is set; otherwise it is `mlflow.db` in the
store, with the artifacts in `mlartifacts/` beside it. A fresh SQLite file is built by some fifty
schema migrations, which neither a second process nor a kill in the middle survives: it is therefore
built under a lock at a temporary name and renamed when whole.
"""

import logging
import os
import socket
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from uuid import uuid4

from filelock import FileLock

from pipelines.errors import UserError
from pipelines.store import Folder

if TYPE_CHECKING:
    from mlflow import MlflowClient

DATABASE = "mlflow.db"
ARTIFACTS = "mlartifacts"
SQLITE = "sqlite:///"
PORTS = {"http": 80, "https": 443}
REACH_SECONDS = 10.0
BUSY_SECONDS = 20.0
SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_UV_AUTO_DETECT": "false",  # else a uv.lock of the working directory enters the model
}


@dataclass(frozen=True, kw_only=True)
class Backend:
    """An MLflow tracking store and registry."""

    tracking_uri: str
    """Server or database of runs and metrics."""
    registry_uri: str
    """Server or database of model versions; the same unless MLFLOW_REGISTRY_URI says otherwise."""
    database: Path | None = None
    """The SQLite file, if it is one."""

    @classmethod
    def locate(cls, store_folder: str) -> "Backend":
        """The backend that the environment or else the store names. Nothing is created."""
        uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
        if not uri:
            folder = Folder.open(store_folder)
            if not folder.is_local:
                raise UserError(
                    f"{folder.uri}: MLflow cannot keep its database there; "
                    "set MLFLOW_TRACKING_URI to a server or database"
                )
            uri = f"{SQLITE}{folder.local(DATABASE)}"
        database = None
        if uri.startswith(SQLITE):
            database = Path(uri.removeprefix(SQLITE)).absolute()
            if "?" in str(database) or "%" in str(database):
                # Releases of SQLAlchemy differ in whether they decode the path of a URI.
                raise UserError(f"{database}: a path with '?' or '%' cannot hold MLflow's database")
            uri = f"{SQLITE}{database}"
        registry = os.environ.get("MLFLOW_REGISTRY_URI", "").strip() or uri
        return cls(tracking_uri=uri, registry_uri=registry, database=database)

    @property
    def artifact_location(self) -> str | None:
        """Folder of a new experiment's artifacts; None leaves the choice to the server."""
        return None if self.database is None else (self.database.parent / ARTIFACTS).as_uri()

    def connect(self, experiment: str) -> "tuple[MlflowClient, str]":
        """A client and the id of the experiment, which is created if need be.

        Raises `UserError` where the database cannot be written or read, the server does not answer,
        or the experiment was deleted.
        """
        if self.database is None:
            _reach(self.tracking_uri)
            return self._open(experiment)
        try:
            self.database.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self.database}.lock"):
                _create_database(self.database, self.artifact_location or "")
                return self._open(experiment)
        except OSError as error:
            raise UserError(
                f"{self.database}: cannot be written ({error}); choose another --store"
            ) from error

    def _open(self, experiment: str) -> "tuple[MlflowClient, str]":
        quiet_mlflow()
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        client = MlflowClient(tracking_uri=self.tracking_uri, registry_uri=self.registry_uri)
        try:
            return client, _experiment_id(client, experiment, self.artifact_location)
        except MlflowException as error:
            reason = str(error.message).splitlines()[0]
            raise UserError(f"{self.tracking_uri}: MLflow cannot be opened ({reason})") from error


def quiet_mlflow() -> None:
    """Import MLflow with its telemetry off the network and its chatter off the terminal.

    A setting that the user has made stays. The level is set once more behind the import: somebody
    may have imported MLflow before.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    import mlflow  # noqa: F401

    logging.getLogger("mlflow").setLevel(os.environ["MLFLOW_LOGGING_LEVEL"].upper())
    logging.getLogger("alembic").setLevel(logging.WARNING)


def _create_database(database: Path, artifact_location: str) -> None:
    if database.exists() and database.stat().st_size > 0:
        try:
            with closing(sqlite3.connect(database, timeout=BUSY_SECONDS)) as connection:
                connection.execute("SELECT count(*) FROM sqlite_master")
        except sqlite3.DatabaseError as error:  # MLflow would try ten times over
            raise UserError(
                f"{database}: cannot be read ({error}); mend it or move it away, and run the "
                "command again"
            ) from error
        return
    quiet_mlflow()
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    from sqlalchemy.exc import SQLAlchemyError

    for leftover in database.parent.glob(f".tmp-*-{database.name}*"):
        leftover.unlink()
    temporary = database.with_name(f".tmp-{uuid4().hex}-{database.name}")
    try:
        store = SqlAlchemyStore(f"{SQLITE}{temporary}", artifact_location)
    except SQLAlchemyError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{database}: cannot be made ({reason}); choose another --store") from error
    store.engine.dispose()
    temporary.replace(database)


def _experiment_id(client: "MlflowClient", name: str, artifact_location: str | None) -> str:
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return str(client.create_experiment(name, artifact_location=artifact_location))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            experiment = client.get_experiment_by_name(name)
    if experiment.lifecycle_stage != "active":
        raise UserError(
            f"experiment {name!r} was deleted; restore it with "
            f"'mlflow experiments restore --experiment-id {experiment.experiment_id}'"
        )
    return str(experiment.experiment_id)


def _reach(uri: str) -> None:
    """Fail at once where no server listens: MLflow itself would retry for minutes."""
    parts = urlsplit(uri)
    if parts.scheme not in PORTS or not parts.hostname:
        return
    from requests.utils import get_environ_proxies

    if get_environ_proxies(uri):
        return
    try:
        port = parts.port or PORTS[parts.scheme]
        socket.create_connection((parts.hostname, port), REACH_SECONDS).close()
    except (OSError, ValueError) as error:
        raise UserError(
            f"MLFLOW_TRACKING_URI={uri}: no server answers ({error}); start it or unset it"
        ) from error
