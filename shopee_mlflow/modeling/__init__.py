"""Models: architectures, freezing, losses, metrics, devices. Independent of MLflow."""
