"""Several processes as one: launch, rendezvous, preemption, and how all end when one fails."""
