"""Trains the audio encoder of sam-tiny on raw waveforms: labels, and a larger network's opinion of the same sound.

    python examples/sam_tiny/train_encoder.py train --data encoder-data.safetensors --output runs/encoder --seconds 240
    python examples/sam_tiny/train_encoder.py plan --data encoder-data.safetensors --plan experiments.json \
        --work runs/plan --results results.jsonl --until 540
    python examples/sam_tiny/train_encoder.py time --data encoder-data.safetensors

`--data` is what `encoder_data.py` packs. The waveforms lie on the device, and every step makes new views of them there
(`sam_lab.training.waveforms`): first of 5.12 s that repeated clips fill, and at the end of 10.24 s as the product sees
clips, most of them filled up. The encoder learns the labels, and with `--teacher` YAMNet's scores and embedding. One
fold of ESC-50 is held out. `train` writes `encoder.safetensors` (bf16) and `encoder.json`; it stores its state every
20 s and continues with `--resume`. `plan` runs a list of settings, each with several seeds, appends one line to the
results after each, and skips what they hold already. `time` measures the parts of a step.
"""

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a checkout works without installing it
from encoder_data import TEACHER, Collection
from encoder_student import Student, autocast, load_student, losses, save_student
from encoder_validation import Validation
from encoder_views import FULL_FRAMES, Batches, Settings, measure_teacher
from yamnet import YamNet

from configuration_sam import SamAudioConfig
from sam_lab.common.files import write_json, written
from sam_lab.evaluation.scoring import wilson_interval
from sam_lab.training.optimizers import make_optimizer, warmup_cosine

SAVE_SECONDS = 20  # between two states


def wait(device: torch.device) -> float:
    """The time, once the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.monotonic()


# -- Training -----------------------------------------------------------------------------------------------------


def build_student(settings: Settings, labels: list[str], teacher: YamNet | None) -> Student:
    """A student with random weights by the seed."""
    torch.manual_seed(settings.seed)
    config = SamAudioConfig(
        hidden_size=settings.width,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        intermediate_size=4 * settings.width,
        attn_implementation="sdpa",
    )
    sizes = (0, 0) if teacher is None else (teacher.head.out_features, teacher.head.in_features)
    return Student(config, labels, *sizes)


def take_step(student, compute, optimizer, batch: dict[str, Any], settings: Settings) -> torch.Tensor:
    """Gradients of one batch and a step with them; returns the losses `[3]` without waiting for the device."""
    with autocast(batch["features"].device):
        outputs = compute(batch["features"], batch["frames"], batch["keep"])
    parts = losses(student, outputs, batch["targets"], batch["taught"], batch["frames"])
    loss = settings.answer_weight * parts[0] + parts[1] + settings.embedding_weight * parts[2]
    loss.backward()
    nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    if optimizer is not None:
        optimizer.step()
    student.zero_grad(set_to_none=True)
    return parts.detach()


class Run:
    """One training: student, its average, optimizer and clock.

    Args:
        settings ([`Settings`]): What to do.
        collection ([`Collection`]): Clips of the settings' fold.
        teacher ([`YamNet`], *optional*): Used if `settings.teacher`.
        state_file (`Path`): Where the state is stored.
        compiled (`dict`, *optional*): Modules that earlier runs of the process have compiled, to be used again.
    """

    def __init__(
        self,
        settings: Settings,
        collection: Collection,
        teacher: YamNet | None,
        state_file: Path,
        compiled: dict[str, Any] | None = None,
    ):
        self.settings, self.state_file = settings, state_file
        self.device = collection.train.waveforms.device
        if settings.teacher and teacher is None:
            raise ValueError("--teacher: --data has none; pack it with --teacher, or pass --no-teacher.")
        teacher = teacher if settings.teacher else None
        self.batches = Batches(collection.train, collection.labels, settings, teacher)
        self.student = build_student(settings, collection.labels, teacher).to(self.device)
        self.compute = self.student
        if settings.compile and self.device.type == "cuda":
            self.compile(teacher, {} if compiled is None else compiled)
        if teacher is not None:
            measure_teacher(self.student, self.batches)
        self.average = build_student(settings, collection.labels, teacher).to(self.device).requires_grad_(False)
        self.average.load_state_dict(self.student.state_dict())
        self.optimizer = make_optimizer(
            self.student,
            settings.optimizer,
            settings.learning_rate,
            settings.other_learning_rate,
            settings.weight_decay,
        )
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.validation = Validation(collection, self.batches)
        self.spent, self.step, self.seen, self.compile_seconds = 0.0, 0, 0, 0.0
        self.curve: list[dict] = []

    def compile(self, teacher: YamNet | None, compiled: dict[str, Any]) -> None:
        """Compiles student and teacher, or takes what an earlier run has compiled, with this run's weights."""
        kind = repr([(name, tensor.shape) for name, tensor in self.student.state_dict().items()])
        if kind in compiled:
            weights = self.student.state_dict()
            self.student, self.compute = compiled[kind]
            self.student.load_state_dict(weights)
        else:
            self.compute = torch.compile(self.student, dynamic=False)
            compiled[kind] = (self.student, self.compute)
        if teacher is not None:
            self.batches.hear = compiled.setdefault("teacher", torch.compile(teacher, dynamic=False))

    def parts(self) -> dict[str, Any]:
        """What a state holds the state of."""
        return {"student": self.student, "average": self.average, "optimizer": self.optimizer}

    def save(self) -> None:
        """Stores the state."""
        state = {name: part.state_dict() for name, part in self.parts().items()}
        numbers = {"spent": self.spent, "step": self.step, "seen": self.seen, "curve": self.curve}
        state |= numbers | {"generator": self.batches.generator.get_state()}
        state["settings"] = dataclasses.asdict(self.settings)
        with written(self.state_file) as place:
            torch.save(state, place)

    def resume(self) -> None:
        """Loads the state, if there is one.

        Raises:
            ValueError: It belongs to other settings.
        """
        if not self.state_file.exists():
            return
        state = torch.load(self.state_file, map_location="cpu", weights_only=True)
        if state.pop("settings") != dataclasses.asdict(self.settings):
            raise ValueError(
                f"--resume: {self.state_file} belongs to other settings; delete it, or use another folder."
            )
        for name, part in self.parts().items():
            part.load_state_dict(state[name])
        self.batches.generator.set_state(state["generator"])
        self.spent, self.step, self.seen, self.curve = (state[name] for name in ("spent", "step", "seen", "curve"))

    def warm_up(self) -> None:
        """Compiles what the training will call, before the clock runs."""
        begin = wait(self.device)
        kept = self.batches.generator.get_state()
        has_full = self.settings.full_steps if self.settings.steps else self.settings.full_seconds
        for is_full in (False, True) if has_full else (False,):
            for _ in range(2):
                take_step(self.student, self.compute, None, self.batches.next(is_full), self.settings)
        self.batches.generator.set_state(kept)
        self.compile_seconds = wait(self.device) - begin

    def evaluate(self, totals: torch.Tensor, steps: int) -> None:
        """Adds a point to the curve."""
        named, scores, embedding = (totals / max(steps, 1)).tolist()
        point = {"seconds": round(self.spent, 1), "step": self.step, "loss": named}
        point |= {"scores": scores, "embedding": embedding} if self.settings.teacher else {}
        point |= self.validation(self.average)
        self.curve.append({key: round(value, 4) for key, value in point.items()})
        print(json.dumps(self.curve[-1]), flush=True)

    def train(self, deadline: float | None = None) -> bool:
        """Trains to the end, or until the deadline (of `time.monotonic`): stores its state and returns `False`."""
        settings = self.settings
        if self.device.type == "cuda":
            self.warm_up()
        totals, steps, saved, shown = torch.zeros(3, device=self.device), 0, self.spent, self.spent
        mark = wait(self.device)
        while (share := settings.share(self.spent, self.step)) < 1:
            is_full = settings.is_full(self.spent, self.step)
            for group, rate in zip(self.optimizer.param_groups, self.rates):
                group["lr"] = rate * warmup_cosine(share)
            batch = self.batches.next(is_full)
            totals += take_step(self.student, self.compute, self.optimizer, batch, settings)
            self.step += 1
            self.seen += len(batch["frames"])
            self.follow()
            steps += 1
            if self.step % 10 and self.step != settings.steps:
                self.spent += time.monotonic() - mark
                mark = time.monotonic()
                continue
            self.spent += wait(self.device) - mark
            if self.spent - shown >= settings.evaluate_every:
                self.evaluate(totals, steps)
                totals, steps, shown = torch.zeros_like(totals), 0, self.spent
            if deadline is not None and time.monotonic() > deadline:
                self.save()
                return False
            if self.spent - saved >= SAVE_SECONDS:
                self.save()
                saved = self.spent
            mark = wait(self.device)
        self.evaluate(totals, steps)
        return True

    @torch.no_grad()
    def follow(self) -> None:
        """Moves the average towards the student, at first faster."""
        decay = min(self.settings.ema, self.step / (self.step + 10))
        pairs = zip(self.average.parameters(), self.student.parameters())
        averages, weights = zip(*pairs)
        torch._foreach_lerp_(list(averages), [weight.detach() for weight in weights], 1 - decay)

    def result(self, file: Path) -> dict[str, Any]:
        """Stores the average in bf16, scores what was stored, and returns settings, scores, curve and speed."""
        save_student(self.average, file)
        final = self.validation(load_student(file).to(self.device))
        count = len(self.validation.parts["held_out"][2])
        right = round(final["full"] * count)
        return {
            "accuracy": right / count,
            "interval": list(wilson_interval(right, count)),
            "count": count,
            "scores": {key: round(value, 4) for key, value in final.items()},
            "settings": dataclasses.asdict(self.settings),
            "train_clips": len(self.batches.clips),
            "parameters": sum(parameter.numel() for parameter in self.student.encoder.parameters()),
            "steps": self.step,
            "seconds": round(self.spent, 1),
            "clips_per_second": round(self.seen / max(self.spent, 1e-9), 1),
            "compile_seconds": round(self.compile_seconds, 1),
            "memory_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if self.device.type == "cuda" else None,
            "device": torch.cuda.get_device_name() if self.device.type == "cuda" else "CPU",
            "torch": torch.__version__,
            "curve": self.curve,
        }


def load_teacher(file: Path, device: torch.device) -> YamNet | None:
    """The teacher of a data file, in float16 on a GPU; `None` if it has none."""
    from safetensors import safe_open

    with safe_open(file, "pt") as store:
        if f"{TEACHER}layers" not in store.metadata():
            return None
    teacher = YamNet(file, TEACHER).to(device)
    if device.type == "cuda":
        teacher = teacher.half_weights().to(memory_format=torch.channels_last)
    return teacher


# -- Commands -----------------------------------------------------------------------------------------------------


def train(args: argparse.Namespace, device: torch.device) -> None:
    """One training."""
    settings = Settings(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Settings)})
    args.output.mkdir(parents=True, exist_ok=True)
    collection = Collection.load(args.data, settings.fold, device)
    run = Run(settings, collection, load_teacher(args.data, device), args.output / "state.pt")
    if args.resume:
        run.resume()
    if not run.train(None if args.until is None else args.started + args.until):
        print(f"stopped after {run.spent:.0f} s of training; continue with --resume")
        return
    result = run.result(args.output / "encoder.safetensors")
    write_json(result, args.output / "encoder.json")
    run.state_file.unlink(missing_ok=True)
    low, high = result["interval"]
    print(f"{result['accuracy']:.1%} ({low:.1%} to {high:.1%}) of {result['count']} clips, {result['steps']} steps")


def planned(plan: dict[str, Any]) -> list[tuple[str, Settings]]:
    """The trainings of a plan, by name: each of its `runs` with each of its `seeds`, the seeds outermost.

    Args:
        plan (`dict`): `common`, fields of [`Settings`]; `runs`, by name the fields that differ; `seeds`.
    """
    return [
        (f"{name}-{seed}", Settings(**{**plan.get("common", {}), **changes, "seed": seed}))
        for seed in plan.get("seeds", [0])
        for name, changes in plan["runs"].items()
    ]


def read_results(file: Path) -> list[dict[str, Any]]:
    """The results that a file holds, without a line that a kill has cut."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]


def add_result(file: Path, result: dict[str, Any]) -> None:
    """Appends a line, whatever another process appends, behind a cut line on a line of its own."""
    is_cut = file.exists() and not file.read_bytes().endswith(b"\n")
    with open(file, "a", encoding="utf-8") as handle:
        handle.write("\n" * is_cut + json.dumps(result) + "\n")


def plan(args: argparse.Namespace, device: torch.device) -> None:
    """The trainings of a plan that have no result yet."""
    runs = planned(json.loads(args.plan.read_text(encoding="utf-8")))
    done = {result["name"] for result in read_results(args.results)}
    part, parts = (int(number) for number in args.part.split("/"))
    runs = [run for run in runs[part - 1 :: parts] if run[0] not in done]
    teacher, collections, compiled = load_teacher(args.data, device), {}, {}
    deadline = None if args.until is None else args.started + args.until
    for name, settings in runs:
        if deadline is not None and time.monotonic() > deadline - args.least:
            print(f"no time for {name}; continue with the same command")
            return
        if settings.fold not in collections:
            collections[settings.fold] = Collection.load(args.data, settings.fold, device)
        folder = args.work / name
        folder.mkdir(parents=True, exist_ok=True)
        print(name, flush=True)
        run = Run(settings, collections[settings.fold], teacher, folder / "state.pt", compiled)
        run.resume()
        if not run.train(deadline):
            print(f"{name} stopped after {run.spent:.0f} s of training; continue with the same command")
            return
        result = {"name": name, **run.result(folder / "encoder.safetensors")}
        add_result(args.results, result)
        run.state_file.unlink(missing_ok=True)
        print(f"{name}: {result['accuracy']:.1%}, {result['steps']} steps in {result['seconds']} s", flush=True)


def measure(args: argparse.Namespace, device: torch.device) -> None:
    """Prints the milliseconds of each part of a step."""
    settings = Settings(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Settings)})
    collection = Collection.load(args.data, settings.fold, device)
    run = Run(settings, collection, load_teacher(args.data, device), Path("unused"))
    run.warm_up()
    print(f"compiling: {run.compile_seconds:.1f} s")
    for is_full in (False, True):
        frames = FULL_FRAMES if is_full else settings.frames
        views, _ = run.batches.views(is_full)
        batch = run.batches.next(is_full)
        parts = {
            "views": lambda is_full=is_full: run.batches.views(is_full),
            "log-mel": lambda views=views, frames=frames: run.batches.log_mel(views, frames),
            "teacher": lambda views=views, frames=frames: run.batches.taught(views.waveforms, frames),
            "gradients": lambda batch=batch: take_step(run.student, run.compute, None, batch, settings),
            "gradients and step": lambda batch=batch: take_step(
                run.student, run.compute, run.optimizer, batch, settings
            ),
            "average": run.follow,
            "all": lambda is_full=is_full: take_step(
                run.student, run.compute, run.optimizer, run.batches.next(is_full), settings
            ),
        }
        for name, part in parts.items():
            part()
            begin = wait(device)
            for _ in range(args.repeat):
                part()
            milliseconds = (wait(device) - begin) / args.repeat * 1000
            print(f"{frames} frames, {len(batch['frames'])} clips, {name}: {milliseconds:.2f} ms", flush=True)
    if device.type == "cuda":
        print(f"{torch.cuda.get_device_name()}: {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("train", help="one training")
    several = commands.add_parser("plan", help="a list of trainings")
    timed = commands.add_parser("time", help="milliseconds of the parts of a step")
    for command, function in ((one, train), (several, plan), (timed, measure)):
        command.set_defaults(command=function)
        command.add_argument("--data", type=Path, required=True, help="what encoder_data.py has packed")
        command.add_argument("--until", type=float, help="stop, with the state stored, after so many seconds in all")
    for command in (one, timed):
        for field in dataclasses.fields(Settings):
            option = "--" + field.name.replace("_", "-")
            if field.type is bool:
                command.add_argument(option, action=argparse.BooleanOptionalAction, default=field.default)
            else:
                command.add_argument(option, type=field.type, default=field.default, help="default: %(default)s")
    one.add_argument("--output", type=Path, required=True, help="folder for the encoder, its score and the state")
    one.add_argument("--resume", action="store_true", help="continue from the state in --output")
    several.add_argument("--plan", type=Path, required=True, help="JSON file: common, runs, seeds")
    several.add_argument("--work", type=Path, required=True, help="folder for states and encoders")
    several.add_argument("--results", type=Path, required=True, help="JSON lines; what they hold is not run again")
    several.add_argument("--part", default="1/1", help="run every n-th: 1/2 and 2/2 beside each other")
    several.add_argument("--least", type=float, default=15.0, help="begin nothing with less time left")
    timed.add_argument("--repeat", type=int, default=10, help="default: %(default)s")
    args = parser.parse_args()
    args.started = time.monotonic()
    torch.set_float32_matmul_precision("high")
    args.command(args, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


if __name__ == "__main__":
    main()
