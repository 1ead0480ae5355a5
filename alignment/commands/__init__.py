"""The verbs of the `alignment` command that are neither builders nor evaluators nor training."""
