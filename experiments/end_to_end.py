"""End-to-end training against a prior on a frozen VAE, and a mixed score against none (LSGM Tables 7 and 8).

python -m experiments.end_to_end --out=runs/end_to_end --size=cpu --seeds=0,1,2

All trials of a seed begin with the same VAE and train the prior for the same number of steps. "unmixed" gives the whole
prediction to the network: a mixing logit of 50. Writes table.csv, table.png and table.md with a conclusion.
"""

from experiments.trials import Trial, command_line, conclude, draw_by_trial, paired, run_all, summary

TRIALS = [
    Trial("end-to-end", {}),
    Trial("frozen", {"train.freeze_vae": True}),
    Trial("unmixed", {"objective.mixing_logit_init": 50.0}),
    Trial(
        "unmixed-published-estimate",
        {"objective.mixing_logit_init": 50.0, "objective.control_variate": False},
    ),
    Trial("frozen-unmixed", {"train.freeze_vae": True, "objective.mixing_logit_init": 50.0}),
]
KEYS = {"nelbo": "test NELBO, nats", "fid": "FID"}
# Left, right, what the paper says of left less right.
CLAIMS = [
    ("end-to-end", "frozen", "below zero"),
    ("end-to-end", "unmixed", "below zero"),
    ("unmixed", "unmixed-published-estimate", "not asked"),
    ("frozen", "frozen-unmixed", "not asked"),
]


def main() -> None:
    """Runs the trials."""
    options = command_line(__doc__, "runs/end_to_end")
    rows = run_all(TRIALS, options, metrics=("nelbo", "fid"))
    draw_by_trial(rows, KEYS, options.out / "table.png")
    lines = [
        f"{left} less {right}: NELBO {paired(rows, left, right, 'nelbo')}, FID {paired(rows, left, right, 'fid')} "
        f"(the paper: {paper})."
        for left, right, paper in CLAIMS
    ]
    lines += [f"{row['trial']}, seed {row['seed']}: {row['diverged']}" for row in rows if row["diverged"]]
    conclude(options.out, summary(rows, KEYS), lines)


if __name__ == "__main__":
    main()
