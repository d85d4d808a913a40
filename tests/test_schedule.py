import pytest

from pipelines.engine.schedule import ScheduleConfig, learning_rate, schedule_epoch

FUSION_REID = ScheduleConfig(epochs=180, steps_per_epoch=100)


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
def test_rates_of_the_official_training(epoch, weights, biases):
    """Measured on FusionReID's own scheduler, to the four digits that were kept."""
    assert learning_rate(FUSION_REID, 0.005, epoch) == pytest.approx(weights, rel=5e-4)
    assert learning_rate(FUSION_REID, 0.010, epoch) == pytest.approx(biases, rel=5e-4)


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
    ],
)
def test_impossible_schedules_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ScheduleConfig(**{"epochs": 10, "steps_per_epoch": 5, **wrong})
