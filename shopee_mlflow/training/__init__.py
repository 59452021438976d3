"""Training: inputs, epochs, checkpoints, resuming and results. Independent of the commands."""
