"""``python -m shopee_mlflow``."""

from .cli import main

main()
