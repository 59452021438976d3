"""The classifier: preprocessing, backbone, head and class labels in one ``nn.Module``.

A copy of this file is stored in every logged model, so it imports nothing but torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Mean and standard deviation of ImageNet's training photos, as torchvision's weights expect.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# The mean of three depends less on a single stranger than the nearest one does.
_NEAREST_STRANGERS = 3


class ProductClassifier(nn.Module):
    """Photos in, logits over label groups out.

    :ivar classes: label groups as text, in the order of the logits.
    :ivar label_names: names of the label groups for people, in the same order; may be empty.
    :ivar image_size: side in pixels to which photos are resized inside.
    :ivar resize: how they become squares: ``stretch`` changes their proportions, ``pad`` keeps
        them and centres the whole photo on white, ``crop`` keeps them and takes the centre.
    :ivar architecture: the name of the architecture.
    :ivar tta: test-time augmentation: in eval mode, predictions for a photo and its mirror image
        are averaged, which takes twice the time.
    :ivar temperature: logits are divided by it, so that probabilities fit the accuracy.
    :ivar detector: tells photos of no label group; None if there is none.
    """

    mean: Tensor
    std: Tensor
    # Defaults for models that were logged by earlier versions, which lack these attributes.
    tta = False
    temperature = 1.0
    resize = "stretch"
    label_names: Sequence[str] = ()

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        classes: Sequence[str],
        image_size: int,
        architecture: str = "",
        resize: str = "stretch",
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        """
        :param mean: mean of each channel that the backbone expects, of photos in 0..1.
        :param std: standard deviation of each channel.
        """
        if resize not in ("stretch", "pad", "crop"):
            raise ValueError(f"resize={resize}: must be stretch, pad or crop")
        super().__init__()
        self.classes = [str(name) for name in classes]
        self.image_size = image_size
        self.resize = resize
        self.architecture = architecture
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.backbone = backbone
        self.head = head
        self.detector: StrangerDetector | None = None

    def preprocess(self, images: Tensor) -> Tensor:
        """Resize to ``image_size`` and normalise: any photo tensor -> (N, 3, S, S) float.

        :param images: (N, 3, H, W), uint8 0..255 or float 0..1, any H and W.
        :raises ValueError: for any other shape.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(
                f"images must have the shape (N, 3, H, W), not {tuple(images.shape)}; "
                "add the batch dimension with images[None], and give RGB"
            )
        if images.dtype == torch.uint8:
            images = images.to(self.mean.dtype) / 255
        side = self.image_size
        if images.shape[2] != side or images.shape[3] != side:
            images = self._square(images)
        return (images - self.mean) / self.std

    def _square(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) float 0..1 -> (N, 3, S, S); the same geometry as for photo files."""
        side, (height, width) = self.image_size, images.shape[2:]
        if self.resize == "crop":
            short = min(height, width)
            top, left = (height - short) // 2, (width - short) // 2
            images = images[:, :, top : top + short, left : left + short]
        if self.resize != "pad":
            size = (side, side)
        else:
            longest = max(height, width)
            size = (max(1, round(height * side / longest)), max(1, round(width * side / longest)))
        images = F.interpolate(images, size=size, mode="bilinear", antialias=True)
        if size == (side, side):
            return images
        top, left = (side - size[0]) // 2, (side - size[1]) // 2
        margins = (left, side - size[1] - left, top, side - size[0] - top)
        return F.pad(images, margins, value=1.0)

    def embed(self, images: Tensor) -> Tensor:
        """Photos, as :meth:`forward` takes them -> (N, features) float, the input of the head."""
        return self.backbone(self.preprocess(images))

    def forward(self, images: Tensor) -> Tensor:
        """Photos -> (N, classes) float logits.

        With ``tta``, in eval mode, the logarithm of the mean of both images' probabilities.

        :param images: (N, 3, H, W), uint8 0..255 or float 0..1, any H and W.
        """
        return self._logits(images, self.embed(images))

    def answer(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Photos -> logits as of :meth:`forward`, and scores (N,) float of :attr:`detector`.

        A photo with a score below 0 belongs to no label group. None without a detector.
        """
        embeddings = self.embed(images)
        # Models that were logged by earlier versions have no such attribute.
        detector: StrangerDetector | None = getattr(self, "detector", None)
        scores = None if detector is None else detector(embeddings)
        return self._logits(images, embeddings), scores

    def _logits(self, images: Tensor, embeddings: Tensor) -> Tensor:
        logits: Tensor = self.head(embeddings)
        if not self.tta or self.training:
            return self._calibrated(logits)
        mirrored = self.head(self.embed(images.flip(-1)))
        # float32, since log 2 is not exact in half precision.
        both = torch.stack([each.float().log_softmax(1) for each in (logits, mirrored)])
        return self._calibrated(both.logsumexp(0) - math.log(2))

    def _calibrated(self, logits: Tensor) -> Tensor:
        return logits if self.temperature == 1 else logits / self.temperature


class StrangerDetector(nn.Module):
    """Tells whether a photo looks like those of the label groups, by its nearest references.

    :ivar known: (K, features) float16, directions of embeddings of training photos.
    :ivar strangers: (M, features) float16, of photos of other label groups; M may be 0.
    :ivar threshold: subtracted from the score, so that known photos are above 0.
    :ivar neighbours: so many of the nearest strangers count, by their mean.
    """

    known: Tensor
    strangers: Tensor
    # Models of earlier versions have no such attribute of their own.
    neighbours = 1

    def __init__(self, known: Tensor, strangers: Tensor, threshold: float = 0.0) -> None:
        """
        :param known: (K, features) embeddings; ``strangers`` (M, features).
        """
        super().__init__()
        # Not persistent: a state dict holds the weights alone, which start other trainings.
        for name, values in (("known", known), ("strangers", strangers)):
            directions = F.normalize(values.float()).half()
            self.register_buffer(name, directions, persistent=False)
        self.threshold = threshold
        self.neighbours = min(_NEAREST_STRANGERS, len(strangers))

    def forward(self, embeddings: Tensor) -> Tensor:
        """Embeddings (N, features) -> scores (N,) float32.

        The cosine similarity to the nearest known photo, minus the mean of those to the nearest
        strangers if there are any, minus the threshold.
        """
        directions = F.normalize(embeddings.float())
        score = (directions @ self.known.float().T).amax(1)
        if len(self.strangers):
            similar = directions @ self.strangers.float().T
            score = score - similar.topk(self.neighbours, 1).values.mean(1)
        return score - self.threshold


class CosineLinear(nn.Linear):
    """A head whose logits are scaled cosines between an embedding and a vector of each class.

    Without a bias; a subclass of ``nn.Linear``, so that its weight is found as that of other heads.

    :ivar scale: the logit of a cosine of 1.
    """

    def __init__(self, in_features: int, out_features: int, scale: float) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.scale = scale

    def forward(self, embeddings: Tensor) -> Tensor:
        """(N, in_features) -> (N, out_features) float, from -scale to scale."""
        return self.scale * F.linear(F.normalize(embeddings), F.normalize(self.weight))


class SmallCNN(nn.Module):
    """The CNN of the original experiment: three convolutional blocks and a hidden layer.

    Each block is Conv 3x3, ReLU, MaxPool 2; channels are 3-6-12-24. The flattened size depends on
    ``image_size`` (24 * 30 * 30 at 256 px). Unlike in the original, no ReLU follows the last layer,
    which is the head of :class:`ProductClassifier`.
    """

    features_out = 512

    def __init__(self, image_size: int) -> None:
        super().__init__()
        side, channels, blocks = image_size, 3, []
        for width in (6, 12, 24):
            blocks.append(nn.Sequential(nn.Conv2d(channels, width, 3), nn.ReLU(), nn.MaxPool2d(2)))
            side, channels = (side - 2) // 2, width
        self.features = nn.Sequential(*blocks)
        self.flatten = nn.Flatten()
        self.hidden = nn.Sequential(nn.Linear(channels * side * side, self.features_out), nn.ReLU())

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, image_size, image_size) float -> (N, 512) float."""
        return self.hidden(self.flatten(self.features(images)))
