"""Where things lie, and when they are whole.

A store is a folder on any filesystem that fsspec knows. Every stage owns one folder in it, named
by the fingerprint of everything the result depends on, and commits by writing `manifest.json`
there last, by a temporary name and a rename. So a folder with a manifest is whole, a folder
without one is work that the same command finishes, and a second run finds the manifest and
returns.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

import fsspec
from filelock import FileLock

from pipelines.errors import UserError

MANIFEST = "manifest.json"


def fingerprint(*parts: object) -> str:
    """SHA-256 (hex) of JSON-able values; the same values give the same text on every machine."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_file(fs: fsspec.AbstractFileSystem, path: str) -> str:
    """SHA-256 (hex) of a file, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with fs.open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


@dataclass(frozen=True)
class Folder:
    """One folder of a store; cheap to make and to send to a worker."""

    uri: str
    """Absolute: a local path, or a URI with its scheme."""
    fs: fsspec.AbstractFileSystem = field(compare=False, repr=False)
    root: str = field(compare=False, repr=False)

    @classmethod
    def open(cls, uri: str) -> "Folder":
        """The folder of this path or URI; a `UserError` for a scheme that fsspec does not know or
        has no package for. Nothing is created."""
        if uri.startswith("file://"):
            uri = uri.removeprefix("file://")
        if "://" not in uri:
            uri = str(Path(uri).expanduser().absolute())
        try:
            fs, root = fsspec.core.url_to_fs(uri)
        except (ValueError, ImportError) as error:
            raise UserError(f"{uri}: {error}") from error
        return cls(uri=uri, fs=fs, root=root)

    @property
    def is_local(self) -> bool:
        """Whether plain file functions reach it."""
        return "://" not in self.uri

    @property
    def name(self) -> str:
        """Last part of the path."""
        return self.uri.rstrip("/").rsplit("/", 1)[-1]

    def local(self, name: str = "") -> Path:
        """The plain path of a file here; only for local stores."""
        if not self.is_local:
            raise UserError(f"{self.uri}: this step needs a local folder")
        return Path(self.path(name))

    def path(self, name: str = "") -> str:
        """The path that `fs` takes."""
        return f"{self.root}/{name}" if name else self.root

    def __truediv__(self, name: str) -> "Folder":
        return Folder(uri=f"{self.uri}/{name}", fs=self.fs, root=f"{self.root}/{name}")

    def exists(self, name: str = "") -> bool:
        """Whether the file or folder is there."""
        return bool(self.fs.exists(self.path(name)))

    def make(self) -> "Folder":
        """Create the folder; a `UserError` where it cannot be written."""
        try:
            self.fs.makedirs(self.root, exist_ok=True)
        except (OSError, PermissionError) as error:
            raise UserError(
                f"{self.uri}: cannot be written ({error}); choose another --store"
            ) from error
        if self.is_local and not os.access(self.root, os.W_OK):
            raise UserError(f"{self.uri}: cannot be written; choose another --store")
        return self

    def names(self, suffix: str = "") -> list[str]:
        """Sorted names of the files here with this ending; temporary files are left out."""
        if not self.exists():
            return []
        found = (path.rsplit("/", 1)[-1] for path in self.fs.ls(self.root, detail=False))
        return sorted(n for n in found if n.endswith(suffix) and not n.startswith(".tmp-"))

    @contextmanager
    def write(self, name: str) -> Iterator[IO[bytes]]:
        """Open a new file that appears under its name only once it is complete."""
        temporary = self.path(f".tmp-{uuid4().hex}-{name}")
        try:
            with self.fs.open(temporary, "wb") as file:
                yield file
            self.fs.mv(temporary, self.path(name))
        except BaseException:
            if self.fs.exists(temporary):
                self.fs.rm(temporary)
            raise

    def write_json(self, name: str, value: object) -> None:
        """Write a JSON file, whole or not at all."""
        with self.write(name) as file:
            file.write(json.dumps(value, indent=1, sort_keys=True).encode())

    def read_json(self, name: str) -> Any:
        """The content of a JSON file; a `UserError` names a damaged one."""
        try:
            return json.loads(self.fs.cat_file(self.path(name)))
        except ValueError as error:
            raise UserError(
                f"{self.uri}/{name}: damaged ({error}); delete {self.uri} "
                "and run the same command again"
            ) from error

    def commit(self, manifest: dict[str, Any]) -> None:
        """Declare the folder whole."""
        if self.is_local:  # elsewhere no lock keeps out another command, whose files these may be
            self.clean()
        self.write_json(MANIFEST, manifest)

    def committed(self) -> dict[str, Any] | None:
        """The manifest, if the folder is whole."""
        return self.read_json(MANIFEST) if self.exists(MANIFEST) else None

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder: a second command waits here, and a killed one lets go.

        Only on local stores; elsewhere two commands write the same content under the same names.
        """
        if not self.is_local:
            yield
            return
        self.make()
        with FileLock(self.local(".lock")):
            yield

    def clean(self) -> None:
        """Remove what killed runs left behind under temporary names. Never on remote stores, which
        have no lock: there another command may be writing them, and a killed one leaves them."""
        for path in self.fs.glob(self.path(".tmp-*")):
            self.fs.rm(path, recursive=True)


@dataclass(frozen=True)
class Store:
    """The rooms of a store."""

    folder: Folder

    @classmethod
    def open(cls, uri: str) -> "Store":
        """The store at this path or URI, created if need be; a `UserError` where it cannot be
        written."""
        return cls(Folder.open(uri).make())

    @property
    def uri(self) -> str:
        """Absolute path or URI."""
        return self.folder.uri

    def require_local(self, stage: str) -> None:
        """Refuse a stage that needs plain files before it starts."""
        if not self.folder.is_local:
            raise UserError(
                f"--store {self.uri}: {stage} keeps its runs and the model registry in plain "
                "files; give a folder (on a cluster one that all nodes share)"
            )

    def room(self, kind: str, name: str, print_: str) -> Folder:
        """`KIND/NAME-FINGERPRINT`, for instance `blocks/market1501-0123456789ab`."""
        return self.folder / kind / f"{name}-{print_[:12]}"
