"""What is remembered: runs, models and the registry. The only package that imports MLflow."""
