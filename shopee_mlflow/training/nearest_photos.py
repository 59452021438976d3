"""The training photos that a model sees as most similar to each test photo."""

from __future__ import annotations

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ..data.splits import TEST, TRAIN
from ..modeling.freezing import SplitModel
from ..modeling.models import ProductClassifier
from ..modeling.scoring import predict_logits
from .session import TrainingSession

NEAREST = ("nearest_1", "nearest_2", "nearest_3")
_CHUNK = 1024


def nearest_photos(session: TrainingSession) -> pd.DataFrame:
    """For each test photo, the training photos with the most similar embeddings.

    Similar means a large cosine of the inputs of the model's head. A training has at least as many
    photos as there are columns.

    :param session: a session whose model has the weights of its best epoch.
    :returns: the files of the photos: ``image`` and :data:`NEAREST`, the nearest one first.
    """
    data, embed = session.context.dataset, _Embedding(session.model, session.inputs.parts)
    test, train = (_embeddings(session, embed, split) for split in (TEST, TRAIN))
    count = min(len(NEAREST), len(train))
    found = [(part @ train.T).topk(count).indices for part in test.split(_CHUNK)]
    images = data.frame["image"].to_numpy()
    names = images[data.rows(TRAIN)][torch.cat(found).numpy()]
    table = pd.DataFrame(names, columns=list(NEAREST[:count])).reindex(columns=list(NEAREST))
    table.insert(0, "image", images[data.rows(TEST)])
    return table.fillna("")


class _Embedding(nn.Module):
    """Photos, or activations of frozen layers -> the inputs of the head."""

    def __init__(self, model: ProductClassifier, parts: SplitModel) -> None:
        super().__init__()
        self._model, self._parts = model, parts

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, ...) -> (N, features)."""
        if self._parts.frozen is None:
            return self._model.embed(inputs)
        features: Tensor = self._parts.backbone(inputs) if self._parts.backbone else inputs
        return features


def _embeddings(session: TrainingSession, embed: nn.Module, split: str) -> Tensor:
    """(N, features) float32 on the CPU, of length 1."""
    batches = session.context.batches(split, session.inputs.test.source)
    _, values = predict_logits(embed, batches, session.context.machine)
    return normalize(torch.from_numpy(values), dim=1)
