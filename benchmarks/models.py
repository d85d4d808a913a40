"""How fast the systems are against plain eager PyTorch, in one process, turn by turn.

    python -m benchmarks.models --systems fusion_reid levit_s --batch 8 --json models.json
    python -m benchmarks.models --device cuda

Inference is the embedding of a batch; training is forward, loss and backward, without the
optimiser. Each system has its published size and input and random weights. Before anything is
timed, its embedding is compared with that of `benchmarks.plain_models`, which has the same weights
and does the same arithmetic the plain way, in float32. Then the variants take turns, round after
round, so that whatever else the machine does falls on all of them; a ratio is that of two
neighbours of one round. Needs torch, timm, numpy and safetensors only.

    plain           the plain network, float32
    plain_fp16      the same under float16 autocast
    ours            reid_models, float32
    ours_cl         the same with channels last
    ours_bf16       under bfloat16 autocast; likewise ours_bf16_cl
    ours_compiled   by torch.compile; likewise ours_bf16_compiled, ours_bf16_cl_compiled

"of matrix rate" is the arithmetic of the plain network (FLOPs of its products and convolutions, a
training step counted as three forward passes) over time, as a share of what one large square matrix
product reaches in the same run, in bfloat16 on a GPU, in float32 on a CPU. "memory" is the peak of
one step above what the weights and inputs take.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.memory import peak_memory
from benchmarks.plain_models import plain_model
from benchmarks.steps import (
    SYSTEMS,
    VARIANTS,
    Batch,
    Step,
    System,
    Task,
    Variant,
    check_equal,
    make_networks,
    make_step,
)

Quartiles = tuple[float, float, float]

DEFAULT_VARIANTS = {
    "cpu": ("plain", "ours"),
    "cuda": tuple(name for name in VARIANTS if name not in ("ours_cl", "ours_bf16_compiled")),
}
DEFAULT_BATCHES = {"cpu": (8,), "cuda": (8, 64, 128)}


@dataclass(frozen=True, kw_only=True)
class Record:
    """One line of the result; quartiles are (first, median, third)."""

    system: str
    task: Task
    batch: int
    variant: str
    milliseconds: Quartiles
    images_per_second: float
    ratios: dict[str, Quartiles]
    """Plain variant -> its time over this variant's, round by round."""
    memory_mib: float | None
    of_matrix_rate: float


def interleave(
    steps: dict[str, Step], *, rounds: int, repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each step, the mean of `repeats` in a row, round by round; one round is not
    counted."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            _wait(device)
            start = time.perf_counter()
            for _ in range(repeats):
                step()
            _wait(device)
            if number:
                seconds[name].append((time.perf_counter() - start) / repeats)
    return seconds


def matrix_rate(device: torch.device) -> float:
    """FLOP a second of one large matrix product: the best of ten."""
    size, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (1024, torch.float32)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = interleave({"product": lambda: left @ right}, rounds=10, repeats=1, device=device)
    return 2 * size**3 / min(seconds["product"])


def forward_flops(network: nn.Module, batch: Batch) -> int:
    """FLOPs of one forward pass over the batch in eval mode."""
    network.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(batch.images, batch.cameras)
    return int(counter.get_total_flops())


def measure(
    system: System,
    *,
    tasks: Iterable[Task],
    batches: Iterable[int],
    ways: dict[str, Variant],
    rounds: int,
    repeats: int,
    device: torch.device,
    rate: float,
) -> Iterator[Record]:
    """The records of one system; it is checked on the CPU first.

    Raises:
        ValueError: the plain network gives other embeddings.
    """
    model = system.build()
    check_equal(model, plain_model(model), Batch.draw(system, 2, torch.device("cpu")))
    networks = make_networks(model.to(device), ways)
    for size in batches:
        batch = Batch.draw(system, size, device)
        flops = forward_flops(plain_model(model), batch)
        for task in tasks:
            for network in networks.values():
                network.train(task == "training")
            steps = {
                variant: make_step(networks[variant], model, task, batch, way)
                for variant, way in ways.items()
            }
            seconds = interleave(steps, rounds=rounds, repeats=repeats, device=device)
            yield from (
                Record(
                    system=system.model,
                    task=task,
                    batch=size,
                    variant=variant,
                    milliseconds=quartiles([1e3 * s for s in own]),
                    images_per_second=size / float(np.median(own)),
                    ratios={
                        other: quartiles([a / b for a, b in zip(theirs, own, strict=True)])
                        for other, theirs in seconds.items()
                        if ways[other].plain and other != variant
                    },
                    memory_mib=peak_memory(steps[variant], device),
                    of_matrix_rate=flops
                    * (3 if task == "training" else 1)
                    / float(np.median(own))
                    / rate,
                )
                for variant, own in seconds.items()
            )


def quartiles(values: list[float]) -> Quartiles:
    first, median, third = np.percentile(values, (25, 50, 75)).tolist()
    return first, median, third


def table(records: list[Record]) -> str:
    """The records as one table in Markdown."""
    plains = [v for v in VARIANTS if any(v in record.ratios for record in records)]
    head = ["system", "task", "batch", "variant", "ms", "images/s"]
    head += [*(f"times {plain}" for plain in plains), "memory MiB", "of matrix rate"]
    lines = [head, ["---"] * len(head)]
    for r in records:
        lines.append(
            [
                r.system,
                r.task,
                str(r.batch),
                r.variant,
                _spread(r.milliseconds, 1),
                f"{r.images_per_second:.1f}",
                *(_spread(r.ratios[p], 2) if p in r.ratios else "" for p in plains),
                "" if r.memory_mib is None else f"{r.memory_mib:.0f}",
                f"{100 * r.of_matrix_rate:.0f} %",
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine(device: torch.device, rate: float) -> dict[str, str | int | float]:
    """What the figures depend on."""
    is_cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if is_cuda else _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "python": platform.python_version(),
        "matrix rate, TFLOP/s": round(rate / 1e12, 3),
    }


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _spread(values: Quartiles, digits: int) -> str:
    first, median, third = (f"{value:.{digits}f}" for value in values)
    return f"{median} ({first}-{third})"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=sorted(DEFAULT_VARIANTS))
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=list(SYSTEMS))
    parser.add_argument("--tasks", nargs="+", default=get_args(Task), choices=get_args(Task))
    parser.add_argument("--batch", nargs="+", type=int, help="default: 8; on a GPU 8 64 128")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--repeats", type=int, help="steps a turn; default: 1, on a GPU 10")
    parser.add_argument("--threads", type=int, help="of the CPU; default: PyTorch's choice")
    parser.add_argument("--json", type=Path, help="file for the records")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the table, write the JSON."""
    asked = _parse(arguments)
    if asked.threads:
        torch.set_num_threads(asked.threads)
    device = torch.device(asked.device)
    rate = matrix_rate(device)
    about = machine(device, rate)
    print(", ".join(f"{key} {value}" for key, value in about.items()), file=sys.stderr)
    names = asked.variants or DEFAULT_VARIANTS[device.type]
    records: list[Record] = []
    for name in asked.systems:
        for record in measure(
            SYSTEMS[name],
            tasks=asked.tasks,
            batches=asked.batch or DEFAULT_BATCHES[device.type],
            ways={variant: VARIANTS[variant] for variant in names},
            rounds=asked.rounds,
            repeats=asked.repeats or (10 if device.type == "cuda" else 1),
            device=device,
            rate=rate,
        ):
            records.append(record)
            print(record, file=sys.stderr)
    print(table(records))
    if asked.json:
        written = {"machine": about, "records": [asdict(record) for record in records]}
        asked.json.write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    main()
