"""Search for a better recipe: Ray Tune around Ray Train.

The trials are drawn from the system's space by the recipe's seed, trained for `tune.epochs`
without the held-out share of the train identities, and scored on those; ASHA stops the weak ones.
The test split is never looked at. A trial's folder is named by its number, and its checkpoints and
scores lie there, so a search that was killed goes on.
"""

import json
from typing import Any

import numpy as np
import ray.tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler

import tune_spaces
from pipelines.blocks import Blocks
from pipelines.console import Bar, Reporter, find_user_error
from pipelines.errors import UserError
from pipelines.fit import fit
from pipelines.ingest import open_blocks
from pipelines.ray_session import ray_session, slots
from pipelines.recipe import Recipe
from pipelines.recipe_file import check_recipe, dump_recipe
from pipelines.registry import Tracker
from pipelines.stage import StageResult, once, stage_script
from pipelines.store import Folder, Store
from pipelines.tracking import tracked
from pipelines.train import prepare, require_room
from pipelines.train_loop import FINAL, METRICS
from pipelines.training_fingerprint import search_fingerprint

SCORE = "mAP"
COUNTED_IN_EPOCHS = (
    "schedule.warmup_epochs",
    "schedule.cosine_epochs",
    "schedule.decay_epochs",
    "schedule.hold_epoch",
    "average.start_epoch",
)
BEST = "best.yaml"
ERROR_LENGTH = 500
Params = dict[str, Any]


@once
def run(recipe: Recipe, store: Store, reporter: Reporter) -> StageResult:
    """Search, go on with a search, or find it done."""
    store.require_local("tune")
    if recipe.embed.model is not None:
        raise UserError("embed.model names a trained model, and a search trains its own: omit it")
    blocks = open_blocks(recipe, store, reporter)
    folder = store.room("runs", f"tune-{recipe.title}", search_fingerprint(recipe, blocks))
    with folder.lock():
        done = folder.committed()
        skipped = done is not None
        if done is None:
            with ray_session(verbose=reporter.verbose, dashboard=True):
                done = _search(recipe, blocks, folder, store, reporter)
        # The same search may be asked for with another data root or registry: the file is today's.
        with folder.write(BEST) as file:
            file.write(dump_recipe(apply(recipe, done["best"]["params"])).encode())
    values = {**done, "recipe": f"{folder.uri}/{BEST}"}
    return StageResult(stage="tune", skipped=skipped, uri=folder.uri, values=values)


def draw_trials(recipe: Recipe) -> list[Params]:
    """The parameters of every trial; the first is the recipe as it is. A function of the recipe
    alone."""
    if recipe.model.name not in tune_spaces.list_spaces():
        raise UserError(
            f"no search space for model {recipe.model.name!r}; "
            f"there are {', '.join(tune_spaces.list_spaces())}"
        )
    space = tune_spaces.search_space(
        recipe.model.name, lr=recipe.optim.lr, epochs=recipe.train.epochs
    )
    random = np.random.RandomState(recipe.seed)
    drawn = [
        {name: _plain(domain.sample(random_state=random)) for name, domain in space.items()}
        for _ in range(recipe.tune.trials - 1)
    ]
    return [{}, *drawn]


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def trial_recipe(recipe: Recipe, params: Params) -> Recipe:
    """The recipe of a trial: its parameters, the search's epochs and held-out share.

    Whatever is counted in epochs keeps its share of the run, so that short trials stand for the
    whole training; blocks, which open at whole epochs, open one an epoch at most.
    """
    whole = apply(recipe, params)
    plain, trial, full = whole.to_dict(), recipe.tune.epochs, recipe.train.epochs
    counted = {name: plain[name.split(".")[0]][name.split(".")[1]] for name in COUNTED_IN_EPOCHS}
    changes = {
        # multiplied first: what is as long as the training stays so to the last bit
        **{name: epochs * trial / full for name, epochs in counted.items() if epochs is not None},
        "unfreeze.every": max(1, round(whole.unfreeze.every * trial / full)),
        "train.epochs": recipe.tune.epochs,
        "train.validate_epochs": 1,
        "train.checkpoint_epochs": 1.0,
        "data.holdout": recipe.tune.holdout,
    }
    return apply(whole, changes)


def apply(recipe: Recipe, changes: Params) -> Recipe:
    """The recipe with these `section.key` values."""
    plain = recipe.to_dict()
    for name, value in changes.items():
        section, key = name.split(".")
        plain[section][key] = value
    return check_recipe(plain, "trial")


def _trial(config: dict[str, Any]) -> None:
    """The function that Ray Tune runs for a trial: scores of earlier epochs first, then
    training."""
    recipe: Recipe = trial_recipe(config["recipe"], config["trial"]["params"])
    folder = Folder.open(f"{config['folder']}/trial-{config['trial']['number']:04d}").make()
    job, feed = prepare(recipe, config["blocks"], folder, report=True)
    for path in sorted(folder.local(METRICS).glob("validation-*.json")):
        figures = json.loads(path.read_text())
        ray.tune.report({"epoch": figures["step"] // job.schedule.steps_per_epoch, **figures})
    if not folder.local(FINAL).exists():
        fit(job, feed, callbacks=[TuneReportCallback()])


class _Watch(ray.tune.Callback):
    """In the driver: what every trial reported, its child run, and the progress bar."""

    def __init__(self, tracker: Tracker, parent: str, key: str, bar: Bar) -> None:
        self.tracker, self.parent, self.key, self.bar = tracker, parent, key, bar
        self.runs: dict[int, str] = {}
        self.scores: dict[int, dict[int, dict[str, float]]] = {}
        """By trial and epoch: after a failure an epoch may be reported again."""
        self.ended: set[int] = set()

    def on_trial_result(
        self, iteration: int, trials: list, trial: Any, result: dict, **info: Any
    ) -> None:
        drawn = trial.config["trial"]
        run_id = self.runs.get(drawn["number"]) or self._start(drawn)
        self.scores.setdefault(drawn["number"], {})[int(result["epoch"])] = _scores(result)
        time_ms = int(result["timestamp"] * 1000)
        points = [(k, v, int(result["epoch"]), time_ms) for k, v in _scores(result).items()]
        self.tracker.log_metrics(run_id, points)
        self.bar.update(self.bar.done, f"trial {drawn['number']} {SCORE} {result[SCORE]:.2f}")

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        self._end(trial, "FINISHED")

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        self._end(trial, "FAILED")

    def close(self) -> None:
        """End the runs of the trials that were interrupted."""
        for number, run_id in self.runs.items():
            if number not in self.ended:
                self.tracker.end_run(run_id, "KILLED")

    def _start(self, drawn: dict[str, Any]) -> str:
        number = drawn["number"]
        tags = {"rayreid.stage": "trial", "rayreid.fingerprint": f"{self.key}/{number}"}
        self.runs[number] = self.tracker.start_run(
            f"trial-{number:04d}",
            parent=self.parent,
            run_id=self.tracker.find_run(tags),
            tags=tags,
            params=drawn["params"],
        )
        return self.runs[number]

    def _end(self, trial: Any, status: str) -> None:
        number = trial.config["trial"]["number"]
        self.ended.add(number)
        if number in self.runs:
            self.tracker.end_run(self.runs[number], status)
        self.bar.advance(1)


def _scores(result: dict[str, Any]) -> dict[str, float]:
    return {name: float(result[name]) for name in ("mAP", "mINP", "R1", "R5") if name in result}


def _search(
    recipe: Recipe, blocks: Blocks, folder: Folder, store: Store, reporter: Reporter
) -> dict[str, Any]:
    section = recipe.tune
    drawn: list[dict[str, Any]] = [
        {"number": n, "params": params} for n, params in enumerate(draw_trials(recipe))
    ]
    for trial in drawn:
        prepare(
            trial_recipe(recipe, trial["params"]), blocks, folder
        )  # refuse a bad search before it starts
    concurrent = _fitting_trials(recipe)
    folder.make()
    tracker = Tracker.open(store.uri, experiment=recipe.registry.experiment)
    name = f"tune-{recipe.title}"
    with (
        tracked(tracker, name, folder.name, stage="tune", params=recipe.to_dict()) as parent,
        reporter.bar("tune", total=len(drawn), unit="trials") as bar,
    ):
        watch = _Watch(tracker, parent, folder.name, bar)
        tuner = ray.tune.Tuner(
            _trial,
            param_space={
                "recipe": recipe,
                "blocks": blocks,
                "folder": folder.uri,
                "trial": ray.tune.grid_search(drawn),
            },
            tune_config=ray.tune.TuneConfig(
                metric=SCORE,
                mode="max",
                max_concurrent_trials=concurrent,
                scheduler=ASHAScheduler(
                    time_attr="epoch",
                    max_t=section.epochs,
                    grace_period=min(section.grace_epochs, section.epochs),
                    reduction_factor=section.reduction_factor,
                ),
                trial_dirname_creator=lambda trial: f"trial-{trial.config['trial']['number']:04d}",
            ),
            run_config=ray.tune.RunConfig(
                name="search",
                storage_path=str(folder.local("ray")),
                callbacks=[watch],
                verbose=1 if reporter.verbose else 0,
            ),
        )
        try:
            results = tuner.fit()
        finally:
            watch.close()
        if len(watch.ended) < len(drawn):
            raise KeyboardInterrupt  # Tune takes Ctrl-C as a wish for the results so far
        values = _collect(watch, drawn, results)
        for trial in values["trials"]:
            if trial["error"]:
                reporter.say(f"trial {trial['number']} failed: {trial['error']}")
        tracker.log_dict(parent, apply(recipe, values["best"]["params"]).to_dict(), BEST)
    folder.commit(values)
    return values


def _fitting_trials(recipe: Recipe) -> int:
    """Trials at a time that the cluster has room for: a driver, the workers and a data task each,
    and a GPU a worker where there are GPUs."""
    require_room(recipe)
    each = 2 + recipe.train.workers
    room = int(slots("CPU") // each)
    if slots("GPU"):
        room = min(room, int(slots("GPU") // recipe.train.workers))
    if room < 1:
        raise UserError(f"a trial needs {each} CPUs, the cluster has {slots('CPU'):.0f}")
    return min(recipe.tune.concurrent, room)


def _collect(
    watch: _Watch, drawn: list[dict[str, Any]], results: "ray.tune.ResultGrid"
) -> dict[str, Any]:
    """Every trial with its best scores among those that Tune saw, and the best trial.

    Raises the first trial's error where none came to a score.
    """
    errors = {r.config["trial"]["number"]: r.error for r in results if r.error and r.config}
    trials: list[dict[str, Any]] = []
    for trial in drawn:
        scores = list(watch.scores.get(trial["number"], {}).values())
        best = max(scores, key=lambda row: row[SCORE]) if scores else {}
        error = errors.get(trial["number"])
        reason = None if error is None else _reason(error)
        trials.append({**trial, "epochs": len(scores), "best": best, "error": reason})
    scored = [trial for trial in trials if trial["best"]]
    if not scored:
        raise next(iter(errors.values()), UserError("no trial came to a score"))
    return {"best": max(scored, key=lambda trial: trial["best"][SCORE]), "trials": trials}


def _reason(error: BaseException) -> str:
    """One line: the user's mistake behind a trial's error, or the error's last line."""
    mistake = find_user_error(error)
    return str(mistake or str(error).strip().splitlines()[-1])[:ERROR_LENGTH]


if __name__ == "__main__":
    stage_script("tune")
