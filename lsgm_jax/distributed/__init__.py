"""Multi-process runs: launch, rendezvous, preemption, and the end of all processes when one fails."""
