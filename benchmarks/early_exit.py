"""Early exit on CIFAR-10 ResNet-20: steps saved, energy, and whether the promised bound holds over random splits.

The logits of every step of all 10,000 test images and of 2,000 training images are computed once and kept in .cache.
Candidates are made from training images, thresholds are chosen on 2,000 test images and measured on the first 2,000.

python -m benchmarks.early_exit [if] [signed]
"""

from __future__ import annotations

import math
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.common import ROOT, cifar10_ready, pairs, read, record, zoo
from transpike import SpikingNetwork, convert, simulate
from transpike.measure.early_exit import Certainty, ExitPolicy, ReadOut, Statistic, Trace
from transpike.measure.exit_report import evaluate_exit
from transpike.measure.exit_thresholds import Family, calibrated, constant, levelled, paper_thresholds, risk_controlled
from transpike.measure.risk import binomial_upper, loss_p_value
from transpike.methods import Method
from transpike.methods.mmse import MMSE

CASE, FOLDER = "cifar10_resnet20", ROOT / ".cache" / "early_exit"
EVALUATION, CALIBRATION, SHAPE, SPLITS = 2_000, 2_000, 2_000, 200
LOSS, CONFIDENCE, SAVING_BAR, DROP_BAR = 0.01, 0.95, 0.30, 0.003


@dataclass(frozen=True)
class Conversion:
    """A converted network, how long it runs, and steps its read-out may leave out."""

    method: Method
    steps: int
    starts: tuple[int, ...]


CONVERSIONS = {
    "if": Conversion(MMSE(), 32, (0, 8, 12)),
    "signed": Conversion(MMSE(steps=8, cap=4, signed=True), 16, (0, 1, 2)),
}


def network(conversion: Conversion) -> SpikingNetwork:
    module = zoo()
    assert module is not None
    return convert(module.model(CASE), conversion.method, module.calibration(CASE, 2_000).split(100))


def trace(key: str, part: str) -> Trace:
    """All test images, or training images that the conversion did not see, simulated once."""
    path = FOLDER / f"{key}_{part}_{zlib.crc32(repr(CONVERSIONS[key]).encode()):08x}.npz"  # another conversion, another file
    if not path.exists():
        module = zoo()
        assert module is not None
        if part == "test":
            case = module.load(CASE)
            x, y = case.inputs, case.targets
        else:
            x = module.calibration(CASE, 2_000 + SHAPE)[2_000:]
            with np.load(module.CIFAR10) as arrays:
                y = torch.from_numpy(arrays["y_train"][2_000 : 2_000 + SHAPE].astype(np.int64))
        net = network(CONVERSIONS[key])
        outputs = torch.cat([simulate(net, b, CONVERSIONS[key].steps).outputs for b in x.split(100)], 1)
        FOLDER.mkdir(parents=True, exist_ok=True)
        np.savez(path, outputs=outputs.numpy(), targets=y.numpy())
    with np.load(path) as arrays:
        return Trace(torch.from_numpy(arrays["outputs"]), torch.from_numpy(arrays["targets"]))


def part(whole: Trace, rows: Any) -> Trace:
    return Trace(whole.outputs[:, rows], whole.targets[rows])


def worth(policy: ExitPolicy, data: Trace) -> dict[str, float]:
    """What a policy does on data: mean exit, accuracy there and after all steps (%)."""
    exits, start = policy.exits(data.outputs), policy.certainty.start
    right = policy.certainty.totals(data.outputs).argmax(-1) == data.targets
    here = right.gather(0, (exits - 1 - start)[None])[0]
    mean = float(exits.double().mean())
    return {
        "mean_steps": mean,
        "saved": 1 - mean / data.steps,
        "accuracy": 100 * float(here.double().mean()),
        "all_steps": 100 * float(right[-1].double().mean()),
        "points_lost": 100 * float(right[-1].double().mean() - here.double().mean()),
    }


def offline(key: str) -> list[dict[str, Any]]:
    """Every rule on the first images."""
    test, train = trace(key, "test"), trace(key, "train")
    evaluation, held_out = part(test, slice(0, EVALUATION)), part(test, slice(EVALUATION, EVALUATION + CALIBRATION))
    rows = []
    for statistic in Statistic:
        for readout in ReadOut:
            for start in CONVERSIONS[key].starts:
                certainty = Certainty(statistic, readout, start)
                families = (constant(certainty, test.steps), levelled(train, certainty))
                rules: dict[str, ExitPolicy] = {"paper": paper_thresholds(train, certainty)}
                rules["paper 0.995"] = paper_thresholds(train, certainty, alpha=0.995, beta=0.005)
                for family in families:
                    rules[f"calibrated 0.2 % {family.name}"] = calibrated(held_out, family, loss=0.002)
                    rules[f"risk {LOSS:.0%} {family.name}"] = risk_controlled(held_out, family, loss=LOSS, confidence=CONFIDENCE)
                for rule, policy in rules.items():
                    row = {"statistic": statistic.value, "readout": readout.value, "start": start, "rule": rule}
                    rows.append({**row, **worth(policy, evaluation)})
    return rows


def online(key: str) -> dict[str, Any]:
    """The real thing: samples leave, time and energy are measured."""
    module = zoo()
    assert module is not None
    case, test, start = module.load(CASE, EVALUATION), trace(key, "test"), CONVERSIONS[key].starts[-1]
    certainty = Certainty(Statistic.ENTROPY, ReadOut.MEAN, start)
    held_out = part(test, slice(EVALUATION, EVALUATION + CALIBRATION))
    policy = calibrated(held_out, levelled(trace(key, "train"), certainty), loss=0.002)
    report = evaluate_exit(network(CONVERSIONS[key]), pairs(case.inputs, case.targets, 250), policy)
    report.save(FOLDER / key)
    print(report, flush=True)
    return {**report.to_dict(), "offline": worth(policy, part(test, slice(0, EVALUATION)))}


# ways to show that the loss is at most LOSS, from what each of the calibration samples loses (1, 0 or -1)
def exact(losses: np.ndarray) -> bool:
    """The library's test."""
    return loss_p_value(int((losses > 0).sum()), int((losses < 0).sum()), len(losses), LOSS, 1 - CONFIDENCE) <= 1 - CONFIDENCE


def clopper_pearson(losses: np.ndarray) -> bool:
    """Answers lost alone, as if none were won."""
    return binomial_upper(int((losses > 0).sum()), len(losses), 1 - CONFIDENCE) <= LOSS


def betting(losses: np.ndarray) -> bool:
    """The capital of a bet against a loss above LOSS (Waudby-Smith and Ramdas, arXiv:2010.09686)."""
    n = len(losses)
    seen = np.arange(1, n + 1)
    mean = np.cumsum(losses) / (seen + 1)
    variance = (0.25 + np.cumsum((losses - mean) ** 2)) / (seen + 1)
    variance = np.concatenate([[0.25], variance[:-1]])  # of the samples before
    bets = np.minimum(np.sqrt(2 * math.log(1 / (1 - CONFIDENCE)) / (n * variance)), 0.9 / (1 - LOSS))
    return bool(np.cumsum(np.log1p(bets * (LOSS - losses))).max() >= math.log(1 / (1 - CONFIDENCE)))


def hoeffding(losses: np.ndarray) -> bool:
    """Values from -1 to 1 whatever their variance."""
    return losses.mean() + math.sqrt(2 * math.log(1 / (1 - CONFIDENCE)) / len(losses)) <= LOSS


def empirical(losses: np.ndarray) -> bool:
    """No bound at all."""
    return losses.mean() <= LOSS


TESTS: dict[str, Callable[[np.ndarray], bool]] = {
    test.__name__: test for test in (exact, clopper_pearson, betting, hoeffding, empirical)
}


def splits(key: str, family: Family) -> dict[str, Any]:
    """Random calibration sets of the test images: how often do the chosen exits lose more than LOSS?

    ``drawn``: calibration images are drawn with replacement, so that the loss over all 10,000 is the true one and the
    promise is exactly the one made. ``split``: without, and the loss is that of the other 8,000, itself a sample.
    """
    test = trace(key, "test")
    start = family.certainty.start
    sure = family.certainty.over_time(test.outputs)
    right = family.certainty.totals(test.outputs).argmax(-1) == test.targets
    losses, exits = [], []
    for candidate in family.candidates:
        leaving = sure > torch.tensor(candidate[start:], dtype=torch.float64)[:, None]
        leaving[-1] = True
        index = leaving.int().argmax(0)
        losses.append((right[-1].int() - right.gather(0, index[None])[0].int()).numpy())
        exits.append((index + start + 1).numpy())
    results: dict[str, Any] = {}
    everything = np.arange(test.samples)
    for way in ("drawn", "split"):
        generator = np.random.default_rng(0)
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in TESTS}
        for number in range(SPLITS):
            rows = generator.choice(test.samples, CALIBRATION, replace=way == "drawn")
            others = everything if way == "drawn" else np.setdiff1d(everything, rows)
            for name, accept in TESTS.items():
                chosen = -1
                while chosen + 1 < len(losses) and accept(losses[chosen + 1][rows]):
                    chosen += 1
                lost = 0.0 if chosen < 0 else float(losses[chosen][others].mean())
                steps = float(test.steps) if chosen < 0 else float(exits[chosen][others].mean())
                found[name].append((lost, steps))
                if name == "exact" and number < 3:  # what is counted here is what the library does
                    policy = risk_controlled(part(test, torch.from_numpy(rows)), family, loss=LOSS, confidence=CONFIDENCE)
                    assert policy.thresholds == (family.candidates[chosen] if chosen >= 0 else (1.0,) * test.steps)
        results[way] = {
            name: {
                "holds": float(np.mean([lost <= LOSS for lost, _ in pairs_])),
                "points_lost": 100 * float(np.mean([lost for lost, _ in pairs_])),
                "mean_steps": float(np.mean([steps for _, steps in pairs_])),
            }
            for name, pairs_ in found.items()
        }
    return results


def main(keys: list[str]) -> None:
    if zoo() is None or not cifar10_ready():
        print("skipped: there is no zoo beside the project")
        return
    results: dict[str, Any] = {
        **read("early_exit"),
        "loss": LOSS,
        "confidence": CONFIDENCE,
        "splits": SPLITS,
        "calibration": CALIBRATION,
    }
    for key in keys or CONVERSIONS:
        conversion = CONVERSIONS[key]
        rows = offline(key)
        for row in rows:
            print(key, {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
        bounds = {}
        for start in conversion.starts:
            certainty = Certainty(Statistic.ENTROPY, ReadOut.MEAN, start)
            for family in (constant(certainty, conversion.steps), levelled(trace(key, "train"), certainty)):
                bounds[f"{family.name}, start {start}"] = splits(key, family)
                print(key, family.name, start, bounds[f"{family.name}, start {start}"], flush=True)
        real = online(key)
        met = real["saved"] >= SAVING_BAR and real["lost"] <= DROP_BAR
        held = min(found[way]["exact"]["holds"] for found in bounds.values() for way in found)
        results[key] = {
            "method": repr(conversion.method),
            "offline": rows,
            "online": real,
            "bounds": bounds,
            "checks": {"saved at least 30 % for at most 0.3 points": met, "least share of splits in which the bound holds": held},
        }
        print(key, results[key]["checks"], flush=True)
        record("early_exit", results)


if __name__ == "__main__":
    main(sys.argv[1:])
