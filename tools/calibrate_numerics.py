"""Calibrate the judge of `hal.numerics` by planted faults and write the tables of docs/numerics.md.

    python -m tools.calibrate_numerics            the full experiment, ten minutes on two cores; rewrites the tables
    python -m tools.calibrate_numerics --quick    a small one (under a minute); prints its tables

Exit status 1 where an honest kernel is rejected or more than 1 % of the faults are missed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch
from rich.progress import track

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from hal.numerics import DEFAULT  # noqa: E402
from tools.planted import attention, choosing, experts, matmul, pooling, quantising, report  # noqa: E402
from tools.planted.measure import Run, runs  # noqa: E402
from tools.planted.trial import DATA, Trial  # noqa: E402

DOCUMENT = ROOT / "docs" / "numerics.md"
BEGIN, END = "<!-- begin: tools/calibrate_numerics.py -->", "<!-- end: tools/calibrate_numerics.py -->"
FULL, QUICK = 6, 1  # seeds per configuration
ALLOWED = 0.01  # of the faults may be missed

Job = tuple[Callable[..., Trial], tuple[object, ...]]


def jobs(seeds: int, quick: bool) -> list[Job]:
    """One job per trial, longest first."""
    lengths = (2048,) if quick else (2048, 7168, 18432)
    found: list[Job] = []
    for seed in range(seeds):
        for data in DATA:
            shape = matmul.SHAPES[seed % 2]
            found += [(matmul.trial, (s, k, shape, data, seed)) for k in reversed(lengths) for s in matmul.SCHEMES]
            found += [(experts.trial, (*form, data, seed)) for form in (experts.FORMS[1:2] if quick else experts.FORMS)]
            spread = 3.0 if seed % 2 else 1.0
            types = (torch.bfloat16,) if quick else (torch.bfloat16, torch.float16, torch.float32)
            found += [(attention.trial, (k, d, data, spread, seed)) for k in attention.KINDS for d in types]
            found += [(quantising.quantiser, (name, data, seed)) for name in quantising.ACTIVATIONS]
            found += [(quantising.cache_rows, (data, seed))]
            found += [(pooling.trial, (ratio, data, seed)) for ratio in (4, 128)]
            found += [(choosing.routing, (s, 384 if seed % 2 else 256, data, seed)) for s in choosing.SCORING]
            heads = 16 if seed % 2 else 64
            found += [(choosing.indexer, (data, heads, d, seed)) for d in (torch.float32, torch.bfloat16)]
    return found


def run(job: Job) -> list[Run]:
    torch.set_num_threads(1)
    make, arguments = job
    return runs(make(*arguments), DEFAULT)


def measure(work: list[Job], workers: int) -> list[Run]:
    """All runs, in the order of the jobs."""
    if workers == 1:
        return [r for job in track(work, "planting", transient=True) for r in run(job)]
    with ProcessPoolExecutor(workers) as pool:
        futures = [pool.submit(run, job) for job in work]
        for _ in track(as_completed(futures), "planting", total=len(work), transient=True):
            pass
        return [r for future in futures for r in future.result()]


def verdict(found: Iterable[Run]) -> tuple[int, int, int]:
    """Honest kernels rejected, faults missed, faults larger than rounding."""
    found = list(found)
    rejected = sum(r.real is None and not r.accepted["hal"] for r in found)
    real = [r for r in found if r.real]
    return rejected, sum(r.accepted["hal"] for r in real), len(real)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, short sums, no file written")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    options = parser.parse_args()
    start = time.monotonic()
    seeds = QUICK if options.quick else FULL
    found = measure(jobs(seeds, options.quick), options.workers)
    text = report.tables(found, seeds)
    if options.quick:
        print(text)
    else:
        page = DOCUMENT.read_text()
        head, rest = page.split(BEGIN)
        DOCUMENT.write_text(f"{head}{BEGIN}\n\n{text}\n{END}{rest.split(END)[1]}")
    rejected, missed, real = verdict(found)
    seconds = time.monotonic() - start
    print(f"{rejected} honest kernels rejected, {missed} of {real} faults missed; {len(found)} runs in {seconds:.0f} s")
    return int(rejected > 0 or missed > ALLOWED * real)


if __name__ == "__main__":
    raise SystemExit(main())
