"""Config file -> objects: what a config may say, and one frozen `Experiment` of what it describes."""
