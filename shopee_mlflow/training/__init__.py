"""What a training is made of: inputs, epochs, checkpoints, resuming, results. Knows no verb."""
