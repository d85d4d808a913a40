"""Registration, promotion and rollback in a real SQLite store."""

from typing import Any

import pytest

from pipelines.errors import UserError
from pipelines.registry import (
    PromotionRefusedError,
    aliases,
    promote,
    rollback,
    rolled_back,
)
from tests.registry.helpers import CARD, TAGS, Registrar, local


def test_same_weights_and_gallery_are_registered_once(register: Registrar) -> None:
    assert register(70.0, fill=1.0) == 1
    assert register(70.0, fill=1.0) == 1
    assert register(70.0, fill=2.0) == 2
    assert register(70.0, fill=1.0, tags={**TAGS, "gallery": "gallery-2"}) == 3
    assert register.aliases() == {"challenger": 3}
    assert register(71.5, fill=1.0, tags={**TAGS, "protocol": "flip"}) == 1
    tags = register.tracker.client.get_model_version(register.name, "1").tags
    assert (tags["metric.mAP"], tags["protocol"]) == ("71.5", "flip")
    assert register.aliases() == {"challenger": 3}


def test_registration_goes_on_after_a_kill(register: Registrar) -> None:
    """A killed run leaves a logged model without files, or a whole one without a version."""
    client = register.tracker.client

    def logged() -> list[Any]:
        found = client.search_logged_models([register.tracker.experiment_id])
        tag = client.get_model_version(register.name, "1").tags["registration"]
        return [model for model in found if model.tags.get("registration") == tag]

    register(70.0)
    (whole,) = logged()
    assert whole.status == "READY"
    registration = whole.tags["registration"]
    client.delete_registered_model(register.name)
    register(70.0)
    assert [model.model_id for model in logged()] == [whole.model_id]

    client.delete_registered_model(register.name)
    client.delete_logged_model(whole.model_id)
    pending = client.create_logged_model(
        register.tracker.experiment_id, name="cut", tags={"registration": registration}
    )
    register(70.0)
    (finished,) = logged()
    assert (finished.model_id, finished.status) == (pending.model_id, "READY")
    assert (local(finished.artifact_location) / "MLmodel").exists()
    assert register.aliases() == {"challenger": 1}


def test_registration_refuses_what_could_not_be_used(register: Registrar) -> None:
    with pytest.raises(UserError, match="'a/b': a model name"):
        register(1.0, name="a/b")
    with pytest.raises(ValueError, match=r"'protocol'.*missing"):
        register(1.0, tags={"data_fingerprint": "d", "gallery": "g"})
    with pytest.raises(ValueError, match="SHA-256"):
        register(1.0, tags={**TAGS, "weights_sha256": "0" * 64})
    card = CARD.to_dict()
    with pytest.raises(ValueError, match="num_classes"):
        register(1.0, model_card={k: v for k, v in card.items() if k != "num_classes"})
    cut = register.weights(5.0)
    cut.write_bytes(cut.read_bytes()[:-4])
    with pytest.raises(UserError, match=r"5\.0\.safetensors: not a whole safetensors file"):
        register(1.0, weights=cut)
    with pytest.raises(UserError, match="no such model"):
        promote(register.tracker, register.name)
    assert aliases(register.tracker, register.name, 1) is None


def test_promotion_needs_at_least_the_champions_map(register: Registrar) -> None:
    register(70.0, fill=1.0)
    first = promote(register.tracker, register.name)
    assert (first.version, first.previous, first.mean_ap, first.changed) == (1, None, 70.0, True)
    assert register.aliases() == {"champion": 1}
    assert promote(register.tracker, register.name).changed is False

    register(69.9, fill=2.0)
    assert register.aliases() == {"champion": 1, "challenger": 2}
    with pytest.raises(PromotionRefusedError, match=r"version 2 has mAP 69\.9.*below 70\.0"):
        promote(register.tracker, register.name)
    assert register.aliases().get("champion") == 1
    forced = promote(register.tracker, register.name, force=True)
    assert (forced.version, forced.previous, forced.previous_mean_ap) == (2, 1, 70.0)

    register(69.9, fill=3.0)
    assert promote(register.tracker, register.name).version == 3
    assert promote(register.tracker, register.name, 1).version == 1
    with pytest.raises(UserError, match=r"no version 9; there are \[1, 2, 3\]"):
        promote(register.tracker, register.name, 9)


@pytest.mark.parametrize("key", ["data_fingerprint", "protocol"])
def test_promotion_refuses_to_compare_other_data_or_protocol(register: Registrar, key: str) -> None:
    register.name = f"compare-{key}"
    register(70.0, fill=1.0)
    promote(register.tracker, register.name)
    register(99.0, fill=2.0, tags={**TAGS, key: "another"})
    with pytest.raises(PromotionRefusedError, match=f"{key} another.*--force"):
        promote(register.tracker, register.name)
    assert register.aliases().get("champion") == 1
    assert promote(register.tracker, register.name, force=True).version == 2


@pytest.mark.parametrize("mean_ap", [None, float("nan")])
def test_promotion_refuses_a_version_without_map(
    register: Registrar, mean_ap: float | None
) -> None:
    register.name = f"without-{mean_ap}"
    register(70.0, fill=1.0)
    promote(register.tracker, register.name)
    register(mean_ap, fill=2.0)
    with pytest.raises(PromotionRefusedError, match="has no mAP"):
        promote(register.tracker, register.name)


def test_rollback_goes_back_champion_by_champion(register: Registrar) -> None:
    for value in (1.0, 2.0, 3.0, 4.0):
        register(70.0 + value, fill=value)
        promote(register.tracker, register.name)
    register.tracker.client.delete_model_version(register.name, "3")
    assert rollback(register.tracker, register.name) == 2
    assert register.aliases().get("champion") == 2
    assert promote(register.tracker, register.name, 4).previous == 2
    assert rollback(register.tracker, register.name) == 2
    assert rollback(register.tracker, register.name) == 1
    with pytest.raises(UserError, match="no earlier champion"):
        rollback(register.tracker, register.name)
    assert register.aliases().get("champion") == 1
    assert rolled_back(register.tracker, register.name, 2)
    assert not rolled_back(register.tracker, register.name, 1)
    register(72.0, fill=2.0)
    assert register.aliases() == {"champion": 1}
