"""Learning rates against the published tables, and against the schedules' own terms."""

import math

import pytest

from pipelines.engine.averaging import AverageConfig
from pipelines.engine.schedule import ScheduleConfig, learning_rate, schedule_epoch

FUSION_REID = ScheduleConfig(epochs=180, steps_per_epoch=100)
LA_TRANSFORMER = ScheduleConfig(epochs=30, steps_per_epoch=381, shape="step", warmup_epochs=0)
LVIT_NET = ScheduleConfig(
    epochs=60,
    steps_per_epoch=100,
    warmup_epochs=10,
    warmup_start_lr=0.0,
    min_lr=0.0,
    cosine_after_warmup=True,
)
PAT = ScheduleConfig(
    epochs=60,
    steps_per_epoch=100,
    warmup_epochs=5,
    warmup_start_lr=1e-5,
    min_lr=2e-6,
    cosine_epochs=120,
)


def levit(lr: float, cosine: int, hold: int, epochs: int) -> ScheduleConfig:
    return ScheduleConfig(
        epochs=epochs,
        steps_per_epoch=188,
        warmup_epochs=5,
        warmup_start_lr=0.01 * lr,
        min_lr=0.0,
        cosine_epochs=cosine,
        cosine_after_warmup=True,
        hold_epoch=hold,
    )


@pytest.mark.parametrize(
    ("epoch", "weights", "biases"),
    [
        (1, 5.450e-4, 1.045e-3),
        (5, 2.525e-3, 5.025e-3),
        (9, 4.505e-3, 9.005e-3),
        (10, 4.962e-3, 9.924e-3),
        (60, 3.753e-3, 7.503e-3),
        (90, 2.505e-3, 5.005e-3),
        (120, 1.258e-3, 2.508e-3),
        (150, 3.443e-4, 6.792e-4),
        (180, 1e-5, 1e-5),
    ],
)
def test_fusion_reid_has_the_rates_of_its_official_training(epoch, weights, biases):
    """Measured on FusionReID's own scheduler, to the four digits that were kept."""
    assert learning_rate(FUSION_REID, 0.005, epoch) == pytest.approx(weights, rel=5e-4)
    assert learning_rate(FUSION_REID, 0.010, epoch) == pytest.approx(biases, rel=5e-4)


@pytest.mark.parametrize(
    ("lr", "cosine", "extra", "hold", "epochs", "plateau", "share", "snapshots"),
    [
        (0.12, 75, 25, 60, 100, 0.01309, 0.1091, 41),
        (0.20, 75, 25, 60, 100, 0.02182, 0.1091, 41),
        (0.04, 55, 25, 44, 80, 0.00459, 0.1147, 37),
        (0.15, 15, 15, 12, 30, 0.03092, 0.2061, 19),
    ],
)
def test_levit_warms_up_decays_and_holds(
    lr, cosine, extra, hold, epochs, plateau, share, snapshots
):
    assert (hold, epochs) == (int(cosine * 0.8), cosine + extra)
    config = levit(lr, cosine, hold, epochs)
    for epoch in range(1, epochs + 1):
        if epoch <= 5:
            expected = lr * (0.01 + 0.99 * epoch / 5)
        else:
            done = math.pi * (min(epoch, hold) - 5) / (cosine - 5)
            expected = lr / 2 * (1 + math.cos(done))
        assert learning_rate(config, lr, epoch) == pytest.approx(expected, rel=1e-12)
    assert learning_rate(config, lr, 1) == pytest.approx(0.208 * lr)
    assert learning_rate(config, lr, 5) == pytest.approx(lr)
    assert learning_rate(config, lr, hold - 1) > learning_rate(config, lr, hold)
    held = {learning_rate(config, lr, epoch) for epoch in range(hold, epochs + 1)}
    (rate,) = held
    assert rate == pytest.approx(plateau, abs=5e-6)
    assert rate / lr == pytest.approx(share, abs=5e-5)
    assert AverageConfig(kind="uniform", start_epoch=hold).members(config) == snapshots


LA_RATES = [
    2.400e-4,
    1.920e-4,
    1.536e-4,
    1.229e-4,
    9.830e-5,
    7.864e-5,
    6.291e-5,
    5.033e-5,
    4.027e-5,
    3.221e-5,
    2.577e-5,
    2.062e-5,
    1.649e-5,
    1.319e-5,
    1.056e-5,
]


def test_la_transformer_decays_fifteen_times_the_first_before_the_first_epoch():
    rates = [learning_rate(LA_TRANSFORMER, 3e-4, epoch) for epoch in range(1, 31)]
    assert rates[0::2] == rates[1::2]
    assert rates[0::2] == [pytest.approx(rate, rel=5e-4) for rate in LA_RATES]


def test_la_transformer_by_step_keeps_a_rate_for_two_whole_epochs():
    by_step = ScheduleConfig(
        epochs=6, steps_per_epoch=7, shape="step", warmup_epochs=0, granularity="step"
    )
    rates = [learning_rate(by_step, 1.0, schedule_epoch(by_step, step)) for step in range(42)]
    assert rates == pytest.approx([0.8] * 14 + [0.64] * 14 + [0.512] * 14)


def test_lvit_net_rises_to_its_peak_and_falls_to_zero():
    rates = [learning_rate(LVIT_NET, 0.01, epoch) for epoch in range(61)]
    assert rates[:11] == pytest.approx([0.001 * epoch for epoch in range(11)])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[35] == pytest.approx(0.005)
    assert rates[60] == pytest.approx(0.0, abs=1e-15)


def test_pat_stops_halfway_down_its_cosine():
    rates = [learning_rate(PAT, 1e-3, epoch) for epoch in range(61)]
    assert rates[:5] == pytest.approx([1e-5 + 0.99e-3 * epoch / 5 for epoch in range(5)])
    assert rates[5] == pytest.approx(2e-6 + 0.998e-3 / 2 * (1 + math.cos(math.pi / 24)))
    assert rates[60] == pytest.approx(1e-3 / 2, rel=3e-3)
    assert learning_rate(PAT, 2e-3, 60) == pytest.approx(2e-3 / 2, rel=3e-3)


def test_epoch_granularity_counts_from_one_and_keeps_the_rate_within_an_epoch():
    epochs = [schedule_epoch(FUSION_REID, step) for step in (0, 99, 100, 17_999)]
    assert epochs == [1, 1, 2, 180]
    assert FUSION_REID.total_steps == 18_000


def test_step_granularity_meets_the_epoch_rates_at_the_end_of_each_epoch():
    by_step = ScheduleConfig(epochs=180, steps_per_epoch=100, granularity="step")
    assert schedule_epoch(by_step, 0) == 0.01
    for epoch in (1, 9, 10, 11, 180):
        step = epoch * 100 - 1
        assert schedule_epoch(by_step, step) == epoch
    rates = [learning_rate(by_step, 0.005, schedule_epoch(by_step, s)) for s in range(18_000)]
    assert rates[:999] == sorted(rates[:999])
    assert rates[999:] == sorted(rates[999:], reverse=True)


def test_without_warmup_the_cosine_starts_at_the_base_rate():
    config = ScheduleConfig(epochs=4, steps_per_epoch=1, warmup_epochs=0, min_lr=0.0)
    assert learning_rate(config, 0.1, 0) == 0.1
    assert learning_rate(config, 0.1, 2) == pytest.approx(0.05)
    assert learning_rate(config, 0.1, 4) == pytest.approx(0.0)


@pytest.mark.parametrize("epoch", [-0.5, 180.01])
def test_epochs_outside_the_training_are_refused(epoch):
    with pytest.raises(ValueError, match=r"0\.\.180"):
        learning_rate(FUSION_REID, 0.005, epoch)


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"steps_per_epoch": 0},
        {"warmup_epochs": -1},
        {"min_lr": -1e-5},
        {"granularity": "batch"},
        {"shape": "linear"},
        {"decay_factor": 0.0},
        {"decay_epochs": 0},
        {"hold_epoch": 3, "warmup_epochs": 4},
        {"hold_epoch": 11, "warmup_epochs": 4},
        {"cosine_epochs": 9.5},
        {"cosine_epochs": 5, "hold_epoch": 6, "warmup_epochs": 2},
        {"cosine_epochs": 12, "warmup_epochs": 12, "cosine_after_warmup": True},
    ],
)
def test_impossible_schedules_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ScheduleConfig(**{"epochs": 10, "steps_per_epoch": 5, **wrong})
