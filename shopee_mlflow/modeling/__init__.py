"""What learns: architectures, freezing, the training loop and its metrics. Knows no MLflow."""
