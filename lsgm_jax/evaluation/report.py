"""report.json, what is known about a run, added to by each command; and its scores as a table."""

import json
import pathlib
from typing import Any

from lsgm_jax.files import write_json

# What reports call the models they score, and what the table does.
COLUMNS = {"lsgm": "LSGM", "sgm": "SGM", "vae": "VAE, Normal prior"}


def read_report(workdir: pathlib.Path) -> dict[str, Any]:
    """The report so far, empty if there is none or if it is not readable."""
    try:
        return json.loads((workdir / "report.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def add_to_report(workdir: pathlib.Path, **entries: Any) -> dict[str, Any]:
    """Merges `entries` into report.json and returns all of it."""
    report = read_report(workdir) | entries
    write_json(workdir / "report.json", report)
    return report


def score_table(entries: dict[str, Any]) -> str:
    """The scores of `scoring.evaluate` as `lsgm evaluate` prints them."""

    def cell(name: str) -> str:
        return f"{entries[name]:9.4f} ± {entries[name + '_stderr']:.4f}"

    lines: list[str] = []
    columns = [name for name in COLUMNS if f"nelbo_{name}" in entries]
    lines.append(f"test split, {entries['test_images']} samples, mean ± standard error over samples")
    for unit, ending in (("nats per sample", ""), ("bits per dimension", "_bpd")):
        if f"nelbo_{columns[0]}{ending}" not in entries:
            continue  # continuous data have no bits
        if ending and "sgm" in columns:
            lines.append("grey levels are dequantised uniformly")
        lines.append(f"{unit:20s}" + "".join(f"{COLUMNS[name]:>20s}" for name in columns))
        for row in ("nelbo", "reconstruction", "entropy", "cross_entropy"):
            if not any(entries[f"{row}_{name}{ending}"] for name in columns):
                continue  # data without an autoencoder have no such term
            lines.append(
                f"  {row:18s}" + "".join(f"{cell(f'{row}_{name}{ending}'):>20s}" for name in columns)
            )
    if "improvement" in entries:
        lines.append(f"LSGM below VAE by {cell('improvement').strip()} nats, paired over samples")
    vae = f", VAE {entries['chosen_step_vae']}" if "chosen_step_vae" in entries else ""
    lines.append(f"steps chosen by validation: {entries['chosen_step']}{vae}")
    if "nelbo_ode_nfe" in entries:
        ode = cell(f"nelbo_{columns[0]}_ode").strip()
        cost = f"NFE {entries['nelbo_ode_nfe']}, products with the Jacobian {entries['nelbo_ode_products']}"
        lines.append(f"NELBO by the ODE {ode} nats, {cost}")
    if "nelbo_iw_draws" in entries:
        weighted = cell(f"nelbo_{columns[0]}_iw").strip()
        lines.append(f"importance-weighted bound of {entries['nelbo_iw_draws']} latents {weighted} nats")
    return "\n".join(lines)
