"""What a run trains: the stages of each model."""
