"""The tables of `lsgm evaluate` stay tables, whatever numbers they hold."""

import re

import pytest

from lsgm_jax.evaluation import report


def entries(scale):
    terms = dict(nelbo=1.0, reconstruction=0.6, entropy=0.1, cross_entropy=0.5)
    values = {
        f"{row}_{model}{ending}{more}": scale * value
        for row, value in terms.items()
        for model in ("lsgm", "vae")
        for ending in ("", "_bpd")
        for more in ("", "_stderr")
    }
    return values | dict(
        test_images=8, chosen_step=2, chosen_step_vae=1, improvement=1.0, improvement_stderr=0.1
    )


@pytest.mark.parametrize("scale", [1.0, -1e5, 1e26, -1e300])
def test_columns_never_run_together(scale):
    table = report.likelihood_table(entries(scale)).splitlines()
    (head,) = (line for line in table if line.startswith("nats per sample"))
    rows = [line for line in table if line.startswith("  ")]
    assert len(rows) == 8
    for row in rows:
        assert len(re.split(r" {2,}", row.strip())) == 3, row
        assert len(row) == len(head)


def test_distances_are_aligned():
    distances = dict(
        samples=1,
        samples_step=1,
        samples_solver="Heun",
        samples_nfe=2.0,
        reference_images=1,
        reference="test",
    )
    distances |= dict(features="x", fid_lsgm=1e30, fid_vae=2.5, kid_lsgm=1e20, kid_lsgm_std=1e20, kid_vae=0.5)
    table = report.distance_table(distances | dict(kid_vae_std=0.1, kid_subsets=1, kid_subset=1)).splitlines()
    rows = [line for line in table if line.startswith("  ")]
    assert len({len(row) for row in rows}) == 1
    assert all(len(re.split(r" {2,}", row.strip())) >= 2 for row in rows)
