"""Runs `lsgm study` on the digits model and writes its figure, its table and a conclusion (docs/solver_study.md).

    lsgm train --config=configs/digits.py --workdir=runs/digits
    python experiments/solver_study.py --workdir=runs/digits

Writes study.csv, study.png and page.md into the run's folder `study`; docs/solver_study.md is page.md.
"""

import argparse
import datetime
import pathlib
import shutil
import time

import jax

from lsgm_jax.evaluation.solver_study import make_settings, study
from lsgm_jax.evaluation.study_rows import Row, as_markdown, plot
from lsgm_jax.sampling.run import Run

SOLVERS = {
    "any": "Euler,Heun,Bosh3,Tsit5,Dopri5,Dopri8,EulerMaruyama,SRA1",
    "vp": "DDIM,PLMS,DEIS,DPMSolverPP,UniPC,EDMHeun,Ancestral,PredictorCorrector",
    "cld": "GDDIM,SSCS",
}
NFE, RTOL = (5, 10, 20, 50), (1e-2, 1e-3, 1e-4)

PAGE = """# Solvers on the digits model

`{command}`, {count} samples, seed {seed}, {hardware}, {date}; {seconds:.0f} s. The same noise for all.

{conclusion}

![distance to the converged solution, and to the data, against evaluations](images/{picture})

Distances: RMS to the solution of Dopri8 at a tolerance of 1e-6, of latents and of decoded samples, for solvers of the
probability flow; energy distance between decoded samples and the test split, an unbiased estimate in pixel space that
scatters around zero for equal distributions. Milliseconds are for one batch of all samples, including the decoder,
after compilation.

{table}
"""


def conclusion(rows: list[Row]) -> str:
    """Lists the solvers with the lowest NFE within given distances of the converged latents."""
    lines = []
    for limit in (0.1, 0.03, 0.01):
        best = {}
        for row in rows:
            if row.rms_latent is not None and row.rms_latent <= limit:
                best[row.solver] = min(best.get(row.solver, row.nfe), row.nfe)
        ranked = sorted(best.items(), key=lambda item: item[1])[:4]
        text = ", ".join(f"{solver} {nfe}" for solver, nfe in ranked) or "none of them"
        lines.append(f"- within {limit:g} of the converged latents, by fewest evaluations: {text}")
    return "\n".join(lines)


def main() -> None:
    """Parses the options, runs the study and writes the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/digits"))
    parser.add_argument("--count", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--grid", default="quadratic")
    parser.add_argument(
        "--picture", default="solver_study.png", help="file name of the figure in docs/images"
    )
    parser.add_argument("--hardware", default=jax.devices()[0].device_kind, help="hardware named on the page")
    options = parser.parse_args()
    start = time.monotonic()
    run, folder = Run.open(options.workdir), options.workdir / "study"
    kind = "cld" if run.config.process.name == "cld" else "vp"
    solvers = f"{SOLVERS['any']},{SOLVERS[kind]}".split(",")
    settings = make_settings(run, solvers, NFE, RTOL, options.grid)
    rows = study(run, settings, options.count, options.seed, folder)
    plot(rows, folder / "study.png")
    shutil.copy(folder / "study.png", folder / options.picture)
    page = PAGE.format(
        command="python experiments/solver_study.py",
        count=options.count,
        seed=options.seed,
        hardware=options.hardware,
        date=datetime.date.today(),
        seconds=time.monotonic() - start,
        conclusion=conclusion(rows),
        picture=options.picture,
        table=as_markdown(rows),
    )
    (folder / "page.md").write_text(page)
    print(conclusion(rows))


if __name__ == "__main__":
    main()
