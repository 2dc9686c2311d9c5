"""docs/board.md from benchmarks/results/board.json: for every network what is best, then all rows."""

from __future__ import annotations

from typing import Any

from benchmarks.common import read

__all__ = ["STEPS", "board_page"]

STEPS = (1, 2, 4, 8, 16, 32, 64, 128)

BOARD = """# The board

Top-1 (%) on pretrained networks of others, made by `make bench-accuracy` (resumable; `benchmarks/results/board.json` names
machine, versions, commit and every setting). T is the number of steps that a conversion is made for and run for; methods that
do not depend on it are converted once. Operations and energy are per image at the last step. Calibration times are those of
the row's `device`, which other rows may have shared: an order of magnitude. First, for each kind of neuron, the best plain
read-out of any chain at a number of steps, and beside it what `Auto` reaches that may use the same neurons.
"""

PUBLISHED = """
## Published figures for comparison

Other networks and data, so only the order of magnitude compares: LTB, ResNet-34 on ImageNet (ANN 75.66), 32 / 64 / 128 steps:
52.3 / 67.7 / 73.7, with light calibration 53.8 / 67.2 / 72.2, with advanced calibration 66.0 / 72.9 / 74.2 (Bu et al.,
arXiv:2409.03368). QCFS, ResNet-20 on CIFAR-10 (ANN 91.77), 4 / 8 / 16 / 32 steps: 83.8 / 89.6 / 91.6 / 92.2 (Bu et al.,
arXiv:2303.04347). Light and advanced calibration, ResNet-20 on CIFAR-10 (ANN 95.68), "T = 16": 93.9 and 94.3 (Li et al.,
arXiv:2106.06984). Training-free parallel neurons, ResNet-34 on ImageNet, 16 / 32 / 64 steps: 68.0 / 72.5 / 73.0
(Hao et al., arXiv:2412.13610). MobileNet-V2 on ImageNet (ANN 71.88), LTB, 32 / 64 / 128 steps: 19.4 / 49.9 / 64.3.
"""


# what neurons of the board's rows may do, and the row in which `Auto` may do the same
KINDS = {
    "plain": "Auto cap 1 unsigned",
    "signed": "Auto cap 1",
    "bursts": "Auto unsigned",
    "bursts, signed": "Auto",
    "parallel": "Auto parallel",
}


def best_table(rows: list[dict[str, Any]]) -> list[str]:
    """What each kind of neuron reaches at a number of steps, the chain that does it, and beside it what `Auto` chose."""
    times = (4, 8, 16, 32)
    lines = ["| neurons | " + " | ".join(f"best at {t} | Auto" for t in times) + " |", "|---|" + "---:|" * (2 * len(times))]
    for kind, auto in KINDS.items():
        cells = []
        for t in times:
            made = [
                row for row in rows if "plain" in row and (row["steps"] == t or (row["steps"] > t and row["steps"] not in times))
            ]
            mine = [row for row in made if _kind(row["chain"]) == kind]
            best = max(mine, key=lambda row: row["plain"][t - 1], default=None)
            chosen = next((row for row in made if row["chain"] == auto), None)
            cells.append("" if best is None else f"{best['plain'][t - 1]:.1f} {best['chain']}")
            cells.append("" if chosen is None else f"{chosen['plain'][t - 1]:.1f}")
        if any(cells):
            lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return lines


def _kind(chain: str) -> str:
    """What the neurons of a row may do; "" for those of `Auto` and for neurons that fire twice."""
    if chain.startswith("Auto") or "OffsetSpikes" in chain:
        return ""
    if chain.startswith("Parallel"):
        return "parallel"
    bursts, signed = "cap" in chain or "AdaFire" in chain, "signed" in chain
    return "bursts, signed" if bursts and signed else "bursts" if bursts else "signed" if signed else "plain"


def board_page() -> str:
    """docs/board.md: one table a network."""
    rows = read("board").get("rows", {}).values()
    lines = [BOARD]
    for case in dict.fromkeys(row["case"] for row in rows):
        mine = [row for row in rows if row["case"] == case]
        first = next(row for row in mine if "ann" in row)
        lines += [
            f"## {case}",
            "",
            f"ANN {first['ann']:.2f} % on the {first['samples']} images, {first['calibration']} calibration images.",
            "",
            *best_table(mine),
            "",
            "| conversion | T | "
            + " | ".join(map(str, STEPS))
            + " | delayed | spikes (k) | SOP (M) | 45 nm (mJ) | 77 fJ (mJ) | calibration (s) |",
            "|---|---:|" + "---:|" * (len(STEPS) + 6),
        ]
        for row in mine:
            if "refused" in row:
                lines.append(f"| {row['chain']} | {row['steps']} | refused: {row['refused']} |" + " |" * (len(STEPS) + 5))
                continue
            cells = " | ".join(f"{row['plain'][t - 1]:.2f}" if t <= row["steps"] else "" for t in STEPS)
            cmos, chip = row["energy_mj"].values()
            costs = (
                f"{row['spikes'] / 1e3:.1f} | {row['sops'] / 1e6:.1f} | {cmos:.3f} | {chip:.4f} | {row['calibration_seconds']:.1f}"
            )
            lines.append(f"| {row['chain']} | {row['steps']} | {cells} | {row['delayed'][-1]:.2f} | {costs} |")
        lines.append("")
    return "\n".join([*lines, PUBLISHED.strip()]) + "\n"
