"""End-to-end training against a frozen VAE, and mixed against plain score (LSGM Tables 7 and 8).

python -m experiments.end_to_end --out=runs/trials --size=cpu --seeds=0,1,2

All trials of a seed start from the same VAE and train the prior for the same number of steps: "lsgm" jointly with the
VAE, "frozen" on the frozen VAE, and "unmixed" jointly, but without the Gaussian part of the score (mixing logit 50).
Writes end_to_end.csv, end_to_end.png and end_to_end.md with a conclusion.
"""

from experiments.trials import Trial, command_line, conclude, draw_by_trial, file_of, paired, run_all, summary

TRIALS = [
    Trial("lsgm", {}),
    Trial("frozen", {"train.freeze_vae": True}),
    Trial("unmixed", {"objective.mixing_logit_init": 50.0}),
]
KEYS = {"nelbo": "test NELBO, nats", "fid": "FID"}
# Left, right, result of the paper for left minus right.
CLAIMS = [
    ("lsgm", "frozen", "below zero"),
    ("lsgm", "unmixed", "below zero"),
]


def main() -> None:
    """Runs the trials and compares them."""
    options = command_line(__doc__, "end_to_end")
    rows = run_all(TRIALS, options, metrics=("nelbo", "fid"))
    draw_by_trial(rows, KEYS, file_of(options, "png"))
    lines = [
        f"{left} minus {right}: NELBO {paired(rows, left, right, 'nelbo')}, FID {paired(rows, left, right, 'fid')} "
        f"(the paper: {paper})."
        for left, right, paper in CLAIMS
    ]
    lines += [f"{row['trial']}, seed {row['seed']}: {row['diverged']}" for row in rows if row["diverged"]]
    conclude(options, summary(rows, KEYS), lines)


if __name__ == "__main__":
    main()
