"""Memory-saving backward passes of the set encoder: bytes and seconds of a training step, against plain and rivals.

    python tests/benchmarks/bench_sbp.py [--threads 1] [--repeats 7] [--json FILE]

Asserts nothing. For panels of T situations and widths of the encoder: bytes that the encoder and the whole step keep for
the backward pass, and seconds of a forward and backward pass, as ratios of plain backpropagation, alternating, medians.
"checkpoint" recomputes the whole token-wise encoder; what it keeps is not seen by the count, so it has no bytes here.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from mxlogit import SBP, ChoiceData, Encoder, Priors
from mxlogit.density import PanelModel
from mxlogit.guide.amortized import AmortizedGuide
from mxlogit.guide.encoder import SetEncoder
from mxlogit.guide.memory import memory_report
from mxlogit.guide.population import GaussianFactor
from mxlogit.mixing import Mixing
from mxlogit.panels import PanelDifferences, difference_panels
from mxlogit.parameters import ParameterSpace
from mxlogit.priors import resolve_priors

LENGTHS, WIDTHS, KEEPS = (8, 32, 128, 512), (64, 256), (0.5, 0.25, 0.125)
_SITUATIONS, _ALTERNATIVES = 16_384, 4
SPACE = ParameterSpace(("f",), ("a", "b", "c"), ((0, 1, 2),))


def make_guide(width: int) -> AmortizedGuide:
    mixing = Mixing(["normal"] * 3)
    model = PanelModel(SPACE, mixing, resolve_priors(Priors(), mixing, 1, [1.0] * 4), torch.ones(4).double())
    start = GaussianFactor(torch.zeros(SPACE.size).double(), 0.1 * torch.eye(SPACE.size).double())
    torch.manual_seed(1)
    return AmortizedGuide(model, start, SetEncoder(3, mixing, Encoder(width)))


def make_panel(length: int) -> PanelDifferences:
    """So many people that all panels have the same number of situations."""
    people, generator = _SITUATIONS // length, torch.Generator().manual_seed(2)
    attributes = torch.randn(people, length, _ALTERNATIVES, 4, generator=generator)
    chosen = torch.randint(0, _ALTERNATIVES, (people, length), generator=generator)
    return difference_panels(ChoiceData.from_arrays(attributes, chosen, names=["f", "a", "b", "c"])).to(torch.float32)


def step(guide: AmortizedGuide, panel: PanelDifferences) -> float:
    """Seconds of one step of the encoder's own bound."""
    population = guide.model.space.constrain(guide.population_factor().mean.detach()).to(panel.values)
    guide.zero_grad()
    started = time.perf_counter()
    guide.encoder_bound(population, panel).backward()
    return time.perf_counter() - started


def compare(length: int, width: int, repeats: int) -> list[dict[str, Any]]:
    guide, panel = make_guide(width), make_panel(length)
    variants: dict[str, SBP | None] = {"plain": None}
    variants |= {f"keep {keep}": SBP(keep, min_keep=1) for keep in KEEPS}
    variants["checkpoint"] = SBP(1.0, recompute=True)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for repeat in range(repeats + 1):
        for name, sbp in variants.items():
            guide.sbp, guide.mask_key = sbp, (0, repeat)
            taken = step(guide, panel)
            seconds[name] += [taken] if repeat else []
    plain = memory_report(with_sbp(guide, None), panel)
    rows = []
    for name, sbp in variants.items():
        found = memory_report(with_sbp(guide, sbp), panel)
        seen = name != "checkpoint"
        rows.append(
            {
                "T": length,
                "width": width,
                "variant": name,
                "encoder_mb": plain["encoder"] / 1e6 if name == "plain" else math.nan,
                "encoder_bytes": found["encoder"] / plain["encoder"] if seen else math.nan,
                "step_bytes": found["step"] / plain["step"] if seen else math.nan,
                "seconds": statistics.median(seconds[name]),
                "time": statistics.median(a / b for a, b in zip(seconds[name], seconds["plain"], strict=True)),
            }
        )
    return rows


def with_sbp(guide: AmortizedGuide, sbp: SBP | None) -> AmortizedGuide:
    guide.sbp = sbp
    return guide


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows: list[dict[str, Any]] = []
    for width in WIDTHS:
        for length in LENGTHS:
            rows += compare(length, width, options.repeats)
            print(pd.DataFrame(rows[-5:]).round(3).to_string(index=False, header=len(rows) == 5), flush=True)
    if options.json:
        record = {"threads": options.threads, "repeats": options.repeats, "torch": torch.__version__, "rows": rows}
        options.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
