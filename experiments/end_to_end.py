"""End-to-end training against a prior on a frozen VAE, and a mixed score against none (LSGM Tables 7 and 8).

python -m experiments.end_to_end --out=runs/trials --size=cpu --seeds=0,1,2

All trials of a seed begin with the same VAE and train the prior for the same number of steps: "lsgm" together with the
VAE, "frozen" alone, and "unmixed" together, but with the whole prediction left to the network (a mixing logit of 50).
Writes end_to_end.csv, end_to_end.png and end_to_end.md with a conclusion.
"""

from experiments.trials import Trial, command_line, conclude, draw_by_trial, file_of, paired, run_all, summary

TRIALS = [
    Trial("lsgm", {}),
    Trial("frozen", {"train.freeze_vae": True}),
    Trial("unmixed", {"objective.mixing_logit_init": 50.0}),
]
KEYS = {"nelbo": "test NELBO, nats", "fid": "FID"}
# Left, right, what the paper says of left less right.
CLAIMS = [
    ("lsgm", "frozen", "below zero"),
    ("lsgm", "unmixed", "below zero"),
]


def main() -> None:
    """Runs the trials."""
    options = command_line(__doc__, "end_to_end")
    rows = run_all(TRIALS, options, metrics=("nelbo", "fid"))
    draw_by_trial(rows, KEYS, file_of(options, "png"))
    lines = [
        f"{left} less {right}: NELBO {paired(rows, left, right, 'nelbo')}, FID {paired(rows, left, right, 'fid')} "
        f"(the paper: {paper})."
        for left, right, paper in CLAIMS
    ]
    lines += [f"{row['trial']}, seed {row['seed']}: {row['diverged']}" for row in rows if row["diverged"]]
    conclude(options, summary(rows, KEYS), lines)


if __name__ == "__main__":
    main()
