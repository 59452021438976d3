"""One photo, one registered model, three ways to ask it; all give the same answer.

    python examples/three_ways.py photo.jpg
    python examples/three_ways.py photo.jpg --url http://127.0.0.1:5002

The third way needs a served model:

    mlflow models serve -m models:/shopee-classifier@champion --env-manager local -p 5002
"""

from __future__ import annotations

import argparse
import base64
import json
import urllib.request
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import torch

Answer = tuple[str, float]


def as_module(model: str, photo: Path) -> Answer:
    """An ``nn.Module``: any (N, 3, H, W) tensor in, logits out. It can be trained on, too."""
    module = mlflow.pytorch.load_model(model)
    # The code travels with the model: this import works where the package is not installed.
    from shopee_mlflow.data.images import read_pixels

    pixels = np.array(read_pixels(photo, module.image_size, module.resize))
    with torch.no_grad():
        logits = module(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    probability, position = torch.softmax(logits, dim=1)[0].max(dim=0)
    return module.classes[int(position)], float(probability)


def as_function(model: str, photo: Path) -> Answer:
    """A ``python_function``: paths, bytes, base64 text or arrays in, label groups out."""
    function = mlflow.pyfunc.load_model(model)
    answer = function.predict(pd.DataFrame({"image": [str(photo)]})).iloc[0]
    return answer["label_group"], float(answer["probability"])


def as_server(url: str, photo: Path) -> Answer:
    """A served model: photos as base64 text over HTTP."""
    record = {"image": base64.b64encode(photo.read_bytes()).decode()}
    request = urllib.request.Request(
        f"{url}/invocations",
        data=json.dumps({"dataframe_records": [record]}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        answer = json.load(response)["predictions"][0]
    return answer["label_group"], float(answer["probability"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photo", type=Path)
    parser.add_argument("--model", default="models:/shopee-classifier@champion")
    parser.add_argument("--url", help="of a served model")
    given = parser.parse_args()
    answers = {
        "mlflow.pytorch": as_module(given.model, given.photo),
        "mlflow.pyfunc": as_function(given.model, given.photo),
    }
    if given.url:
        answers["mlflow models serve"] = as_server(given.url, given.photo)
    for way, (label, probability) in answers.items():
        print(f"{way:20} {label} {probability:.4f}")


if __name__ == "__main__":
    main()
