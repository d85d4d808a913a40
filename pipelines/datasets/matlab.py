"""MATLAB files up to version 7, which hold the lists and labels of several datasets."""

import zlib
from pathlib import Path
from typing import Any

from pipelines.errors import UserError


def load_matlab(path: Path, names: tuple[str, ...]) -> dict[str, Any]:
    """The variables `names` of a MATLAB file, as SciPy gives them: arrays of at least two
    dimensions, cells as arrays of objects.

    Raises `UserError` for a missing or unreadable file and for one without those variables.
    """
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    if not path.is_file():
        raise UserError(f"{path}: no such file; take it from the archive of the dataset")
    try:
        found = loadmat(path, variable_names=names)
    except (
        IndexError,
        MatReadError,
        NotImplementedError,
        OSError,
        TypeError,
        ValueError,
        zlib.error,
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{path}: cannot be read as a MATLAB file: {reason}; take it anew from the archive"
        ) from error
    for name in names:
        if name not in found:
            raise UserError(
                f"{path}: has no variable {name}; take the file that the dataset comes with"
            )
    return {name: found[name] for name in names}
