"""All embedded models within some minutes of one card: see training/on_a_gpu.sh.

In this order, each with a share of the minutes: compact-x2, towards the photos and, with --teacher, towards a better
model; compact-x4 and compact-x3 from its body; photo-x2 and photo-x4 from these; detail-x4 from photo-x4. Each stage is
a trunk and branches: the last part of the schedule runs twice with other patches, and of both ends, their average, and
averages with what the stage began from, the best by the split is kept (averaging gave 0.15 dB once). OUT has a zip
for each stage, of its best and of its ends, to choose again, and report.json; with a failure it has what came before.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
import traceback
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from core.models import WEIGHTS, spec_of
from core.networks.compact_config import CompactConfig
from training.degrade import Bicubic, Degrade
from training.photos import Patches, Pixels, decode, held_back
from training.selection import JPEG_QUALITIES, Selection
from training.train import Phase, Training, train
from training.weights import average, build

LEAST_SECONDS = 10.0  # a stage with less is left out
KEEP_SECONDS = 20.0  # between two looks at the split
TRUNK, BRANCHES = 0.6, 2  # of a stage's schedule, and of how many ends it has
BATCHES, SIZE, LAST_SIZE = (64, 48, 32, 24, 16), 64, 96  # patches of SIZE, and fewer of LAST_SIZE at the end
LOOKS = 25  # at the split, the files written meanwhile counted in, of a stage
WANTED_STEPS = 20_000  # a stage with fewer takes smaller batches


@dataclass(frozen=True)
class Stage:
    """One model.

    Attributes:
        name: of the model.
        share: of the minutes.
        start: model whose weights it begins with: the name of a stage before it, or of an embedded model.
    """

    name: str
    share: float
    start: str

    @property
    def scale(self) -> int:
        """Of the model."""
        return int(self.name[-1])


STAGES = (
    Stage("compact-x2", 0.27, "compact-x2"),
    Stage("compact-x4", 0.12, "compact-x4"),
    Stage("compact-x3", 0.05, "compact-x3"),
    Stage("photo-x2", 0.17, "photo-x2"),
    Stage("photo-x4", 0.14, "photo-x4"),
    Stage("detail-x4", 0.25, "photo-x4"),
)
DETAIL_STRENGTHS = (1.0, 2.0)  # of its branches: which looks better, nobody knows beforehand


def inputs_of(stage: Stage, device: torch.device) -> Bicubic | Degrade:
    """What makes a stage's inputs."""
    if stage.name.startswith("compact"):
        return Bicubic(stage.scale, device)
    return Degrade(stage.scale, device, wide=stage.name.startswith("detail"))


def phases_for(training: Training, seconds: float, batches: tuple[int, ...], size: int, last: int) -> tuple[Phase, ...]:
    """A schedule with the largest batches that leave enough steps, by the steps a second of this machine."""
    device, count, rate = training.device, batches[-1], 0.0
    for count in batches:
        kept = copy.deepcopy(training.state())
        step = training.recorded(Phase(1.0, count, size, True))
        begun, steps = time.perf_counter(), 0
        while time.perf_counter() - begun < min(2.0, seconds / 150) or steps < 2:
            step()
            steps += 1
            if device.type == "cuda":
                torch.cuda.synchronize()
        rate = steps / (time.perf_counter() - begun)
        training.restore(kept)
        if rate * seconds >= WANTED_STEPS:
            break
    few = max(2, count * size**2 // last**2)
    print(f"{count} patches of {size}, then {few} of {last}: {rate:.1f} steps a second", flush=True)
    return Phase(0.5, count, size, False), Phase(0.75, count, size, True), Phase(1.0, few, last, True)


def candidates(ends: list[Path], start: Path, folder: Path) -> list[Path]:
    """Model directories to choose from: both ends, their average, and that with some of what the stage began from."""
    found = list(ends)
    mean = ends[0]
    for index, end in enumerate(ends[1:], 1):
        average(mean, end, 1 / (index + 1), folder / f"mean{index}")
        mean = folder / f"mean{index}"
    found.append(mean)
    for share in (0.1, 0.2, 0.3):
        average(mean, start, share, folder / f"start{share}")
        found.append(folder / f"start{share}")
    return found


def run_stage(stage: Stage, start: Path, pixels: Pixels, split: list[torch.Tensor], seconds: float, tiny: bool,
              folder: Path, device: torch.device, teacher: Path | None) -> tuple[Path, dict[str, object]]:  # fmt: skip
    """Train one model; returns its directory and what is reported of it."""
    begun = time.perf_counter()
    detail = stage.name.startswith("detail")
    size, last, batches = (16, 32, (2,)) if tiny else (SIZE, LAST_SIZE, BATCHES)
    inputs = inputs_of(stage, device)
    # Small photos have no patch of the last size at x4: fewer photos would be worse than smaller patches.
    last = last if stage.scale == 2 or tiny else size
    margin = inputs.margin
    patches = Patches(pixels, device, (last + margin) * stage.scale)
    report: dict[str, object] = {}
    if teacher and stage.name == f"compact-x{spec_of(str(teacher)).scale}":
        patches.teach(teacher)
        report["taught, s"] = round(time.perf_counter() - begun, 1)
    selection = Selection(split, stage.scale, (None,) if stage.name.startswith("compact") else JPEG_QUALITIES)
    net = build(replace(CompactConfig(), scale=stage.scale), start, device)
    if detail:
        from training.detail import DetailTraining

        training: Training = DetailTraining(net, patches, inputs)
    else:
        training = Training(net, patches, inputs)
    training.keep_every, training.rate, training.clock = KEEP_SECONDS, training.start_rate, time.monotonic
    if tiny:  # a step counts as a second, so that a rehearsal does the same on any machine
        training.steps_at_once, training.clock = 1, lambda: float(training.steps)
    phases = phases_for(training, seconds, batches, size, last)
    looked = time.perf_counter()
    selection.score(training.averaged(), device)
    looking = LOOKS * (time.perf_counter() - looked)
    left = seconds if tiny else max(1.0, seconds - looking - (time.perf_counter() - begun))
    whole = left / (TRUNK + BRANCHES * (1 - TRUNK))  # of one schedule
    trunk = (phases[0], replace(phases[1], until=TRUNK))
    train(training, trunk, whole, selection, folder / "trunk")
    kept, ends = copy.deepcopy(training.state()), []
    for branch in range(BRANCHES):
        training.restore(kept)
        training.best = float("-inf")
        torch.manual_seed(branch)
        if detail:
            training.strength = DETAIL_STRENGTHS[branch]
        train(training, phases, whole, selection, folder / f"branch{branch}")
        ends.append(folder / f"branch{branch}" / "last")
    found = candidates(ends, start, folder)
    scores = {}
    for path in [start, folder / "trunk" / "best", *found]:
        net = build(replace(CompactConfig(), scale=stage.scale), path, torch.device("cpu"))
        scores[str(path.relative_to(folder)) if path != start else "start"] = selection.score(net, device)
    # What draws detail is further from the truth, so the split says nothing of it: the average of its ends is taken.
    best = found[BRANCHES] if detail else max(found, key=lambda path: scores[str(path.relative_to(folder))])
    report |= {"steps": training.steps, "photos": patches.photos, "split, dB": scores}
    return best, report | {"kept": str(best.relative_to(folder)), "seconds": round(time.perf_counter() - begun, 1)}


def keep_ends(folder: Path, best: Path, to: Path) -> None:
    """Write a zip of a stage's best weights, and of those at the end of its trunk and branches."""
    with zipfile.ZipFile(to, "w") as archive:
        for path in sorted(folder.glob("*/last/model.safetensors")):
            archive.write(path, f"{path.parent.parent.name}.safetensors")
        archive.write(best / "model.safetensors", "best.safetensors")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train all embedded models within some minutes.")
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--packs", type=Path, nargs="+", required=True, help="what training.pack wrote")
    parser.add_argument("--teacher", type=Path, help="directory of a better model, for the compact one of its scale")
    parser.add_argument("--out", type=Path, required=True, help="folder for the models and report.json")
    parser.add_argument("--tiny", action="store_true", help="tiny batches and patches: a rehearsal")
    parser.add_argument("--stages", nargs="*", default=[stage.name for stage in STAGES])
    arguments = parser.parse_args()
    begun = time.perf_counter()
    end = begun + arguments.minutes * 60
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    arguments.out.mkdir(parents=True, exist_ok=True)
    report: dict[str, object] = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        "torch": torch.__version__,
        "minutes": arguments.minutes,
    }
    stages = [stage for stage in STAGES if stage.name in arguments.stages]
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        for pack in arguments.packs:
            with zipfile.ZipFile(pack) as archive:
                archive.extractall(folder / "photos")
        pixels, split = decode([folder / "photos"], folder / "cache"), held_back([folder / "photos"])
        if not split:
            raise SystemExit("the packs hold no photo of the split, which is in the first of them: give that one, too")
        report["ready, s"] = round(time.perf_counter() - begun, 1)
        made: dict[str, Path] = {}
        for stage in stages:
            shares = sum(later.share for later in stages[stages.index(stage) :])
            seconds = (end - time.perf_counter() - 5) * stage.share / shares
            if arguments.tiny:
                seconds = arguments.minutes * 60 * stage.share
            elif seconds < LEAST_SECONDS:
                report[stage.name] = f"not trained: {seconds:.0f} s were left for it"
                (arguments.out / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
                continue
            start = made.get(stage.start, WEIGHTS / stage.start)
            if stage.scale != 2 and stage.start == stage.name and "compact-x2" in made:
                # Its own weights, and half of what the new compact-x2 has changed.
                own, start = start, folder / f"{stage.name}-start"
                average(own, made["compact-x2"], 0.5, start, before=WEIGHTS / "compact-x2")
            print(f"{stage.name}: {seconds:.0f} s", flush=True)
            try:
                best, found = run_stage(
                    stage, start, pixels, split, seconds, arguments.tiny, folder / stage.name, device, arguments.teacher
                )
                made[stage.name] = best
                keep_ends(folder / stage.name, best, arguments.out / f"{stage.name}.zip")
                report[stage.name] = found
            except Exception as error:
                report[stage.name] = f"{type(error).__name__}: {error}"
                traceback.print_exc()
            (arguments.out / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
