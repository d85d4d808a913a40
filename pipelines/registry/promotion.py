"""Which model version is in use: promote, compare, roll back.

The alias `champion` names the version in use, `challenger` the newest registered one. A version
becomes champion if its mAP is at least the champion's on the same data by the same protocol. A
comparison across data or protocols is refused, because such numbers say nothing about each other.
The champions of the past are kept as a list in a tag of the registered model, so that a promotion
can be taken back.
"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from math import isfinite
from typing import TYPE_CHECKING

from pipelines.errors import UserError
from pipelines.registry.tracker import Tracker

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

CHAMPION = "champion"
CHALLENGER = "challenger"
HISTORY = "champion_history"
HISTORY_LENGTH = 100
PROMOTED = "promoted_at"
COMPARABLE = ("data_fingerprint", "protocol")
METRIC = "metric."
PAGE = 200


class PromotionRefusedError(UserError):
    """A version that is worse than the champion, or cannot be compared with it."""


@dataclass(frozen=True, kw_only=True)
class PromotionResult:
    """What a promotion did."""

    name: str
    version: int
    previous: int | None
    """Champion before; None where there was none."""
    mean_ap: float | None
    """mAP of the version, None where it has none."""
    previous_mean_ap: float | None
    """mAP of the champion before."""
    changed: bool
    """False where the version was champion already."""
    alias: str = CHAMPION


def promote(
    tracker: Tracker, name: str, version: int | None = None, *, force: bool = False
) -> PromotionResult:
    """Make a version (the latest by default) the champion.

    Raises `UserError` where there is no such version, and `PromotionRefusedError` where its mAP is
    below the champion's, or the two were measured on other data or by another protocol. `force`
    promotes what would be refused.
    """
    model = known_model(tracker, name)
    candidate = _version(tracker, name, version)
    current = _champion(tracker, model)
    result = PromotionResult(
        name=name,
        version=int(candidate.version),
        previous=current and int(current.version),
        mean_ap=_mean_ap(candidate),
        previous_mean_ap=current and _mean_ap(current),
        changed=current is None or int(current.version) != int(candidate.version),
    )
    if result.changed and current is not None:
        if not force:
            _compare(name, candidate, current)
        _set_history(tracker, name, [*_history(model), int(current.version)])
    if result.changed:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        tracker.client.set_model_version_tag(name, str(result.version), PROMOTED, now)
        tracker.client.set_registered_model_alias(name, CHAMPION, str(result.version))
    if _alias(model, CHALLENGER) == result.version:
        tracker.client.delete_registered_model_alias(name, CHALLENGER)
    return result


def rollback(tracker: Tracker, name: str) -> int:
    """Make the champion before this one champion again; returns its version.

    Versions deleted since are passed over. Raises `UserError` where no earlier champion is left.
    """
    model = known_model(tracker, name)
    present = {int(found.version) for found in search_versions(tracker, f"name = '{name}'")}
    history = [past for past in _history(model) if past in present]
    while history and history[-1] == _alias(model, CHAMPION):
        history.pop()
    if not history:
        raise UserError(f"{name}: no earlier champion to go back to; name one with 'reid promote'")
    tracker.client.set_registered_model_alias(name, CHAMPION, str(history[-1]))
    _set_history(tracker, name, history[:-1])
    return history[-1]


def aliases(tracker: Tracker, name: str, version: int) -> list[str] | None:
    """Which of `champion` and `challenger` a version is; None where there is no such version."""
    model = find_model(tracker, name)
    versions = search_versions(tracker, f"name = '{name}'") if model else []
    if model is None or version not in {int(found.version) for found in versions}:
        return None
    return [alias for alias in (CHAMPION, CHALLENGER) if _alias(model, alias) == version]


def rolled_back(tracker: Tracker, name: str, version: int) -> bool:
    """Whether a version was champion once and is no more."""
    tags = tracker.client.get_model_version(name, str(version)).tags
    return PROMOTED in tags and _alias(known_model(tracker, name), CHAMPION) != version


def challenge(tracker: Tracker, version: "ModelVersion") -> None:
    """Call a version `challenger`, unless a newer one is or it has been champion."""
    model = known_model(tracker, version.name)
    number = int(version.version)
    if PROMOTED not in version.tags and number > (_alias(model, CHALLENGER) or 0):
        tracker.client.set_registered_model_alias(version.name, CHALLENGER, str(number))


def find_model(tracker: Tracker, name: str) -> "RegisteredModel | None":
    """The registered model of this name."""
    from mlflow.exceptions import MlflowException

    try:
        return tracker.client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def known_model(tracker: Tracker, name: str) -> "RegisteredModel":
    """The registered model of this name; a `UserError` lists what there is instead."""
    model = find_model(tracker, name)
    if model is None:
        names = sorted(found.name for found in tracker.client.search_registered_models())
        known = ", ".join(names) or "none"
        raise UserError(f"{name!r}: no such model at {tracker.uri}; registered: {known}")
    return model


def search_versions(tracker: Tracker, filter_string: str) -> "list[ModelVersion]":
    """All model versions that match, page by page."""
    found: list[ModelVersion] = []
    token: str | None = None
    while True:
        page = tracker.client.search_model_versions(filter_string, PAGE, page_token=token)
        found.extend(page)
        token = page.token
        if not token:
            return found


def _version(tracker: Tracker, name: str, number: int | None) -> "ModelVersion":
    versions = {int(v.version): v for v in search_versions(tracker, f"name = '{name}'")}
    if not versions:
        raise UserError(f"{name}: no version is registered; register one with 'reid register'")
    chosen = max(versions) if number is None else number
    if chosen not in versions:
        raise UserError(f"{name}: no version {chosen}; there are {sorted(versions)}")
    return versions[chosen]


def _champion(tracker: Tracker, model: "RegisteredModel") -> "ModelVersion | None":
    number = _alias(model, CHAMPION)
    return None if number is None else tracker.client.get_model_version(model.name, str(number))


def _compare(name: str, candidate: "ModelVersion", current: "ModelVersion") -> None:
    """Raise `PromotionRefusedError` unless the candidate is known to be at least as good."""
    ours = f"{name} version {candidate.version}"
    theirs = f"the champion (version {current.version})"
    for key in COMPARABLE:
        here, there = candidate.tags.get(key), current.tags.get(key)
        if here is None or here != there:
            raise PromotionRefusedError(
                f"{ours} was measured with {key} {here}, {theirs} with {there}: evaluate both "
                "alike, or promote it uncompared with --force"
            )
    new, old = _mean_ap(candidate), _mean_ap(current)
    if new is None:
        raise PromotionRefusedError(
            f"{ours} has no mAP to compare with {theirs}: evaluate it, or promote it uncompared "
            "with --force"
        )
    if old is not None and new < old:
        raise PromotionRefusedError(
            f"{ours} has mAP {new:.4f}, below {old:.4f} of {theirs}: keep that one, or promote "
            "this one with --force"
        )


def _mean_ap(version: "ModelVersion") -> float | None:
    """mAP of a version, None where it has none or it is not a number."""
    text = version.tags.get(f"{METRIC}mAP")
    value = float(text) if text else None
    return value if value is not None and isfinite(value) else None


def _alias(model: "RegisteredModel", alias: str) -> int | None:
    number = model.aliases.get(alias)
    return None if number is None else int(number)


def _history(model: "RegisteredModel") -> list[int]:
    return list(json.loads(model.tags.get(HISTORY, "[]")))


def _set_history(tracker: Tracker, name: str, history: list[int]) -> None:
    text = json.dumps(history[-HISTORY_LENGTH:])
    tracker.client.set_registered_model_tag(name, HISTORY, text)
