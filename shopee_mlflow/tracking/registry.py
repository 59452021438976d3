"""The model registry: register a run's model, compare it with the champion, move the alias.

The alias ``champion`` only ever names a version that was loaded back and checked, and that is
better than the one before on the very same test photos, unless a person insists.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import mlflow
import torch
from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus, Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from ..errors import TrackingError
from .flavor import check_probe, load_folder
from .model_card import model_card, version_card
from .names import REGISTERED_MODEL, SEEN_TEST_TAG, WEIGHTS_RUN_TAG
from .runs import find_run
from .store import downloaded, quieten

REGISTERED_NAME = REGISTERED_MODEL
CHAMPION, CHALLENGER = "champion", "challenger"
REFUSED_TAG = "refused"
# The metrics by which versions are compared, and their names in words.
_CLAIMS = {"test_accuracy": "test accuracy", "cv_accuracy": "cross-validated accuracy"}
_METRICS = (
    *(f"{name}{bound}" for name in _CLAIMS for bound in ("", "_low", "_high")),
    *("cv_macro_f1", "best_val_accuracy"),
)
_TAGS = ("data_digest", "git_commit", "classes", WEIGHTS_RUN_TAG, SEEN_TEST_TAG)


@dataclass(frozen=True)
class LoadedModel:
    """A model of this project, loaded.

    :ivar module: uint8 or float photos -> logits, in eval mode, on the CPU.
    :ivar label_names: names of ``classes`` for people, in the same order.
    :ivar identity: changes when another model stands behind the same name.
    :ivar run_id: the run that has logged it; None for a model saved in a folder.
    """

    module: torch.nn.Module = field(repr=False)
    classes: list[str] = field(repr=False)
    image_size: int
    resize: str
    identity: str
    run_id: str | None = None
    label_names: list[str] = field(default_factory=list)


def load_classifier(uri: str) -> LoadedModel:
    """Load a model by any MLflow URI: ``models:/name@alias``, ``models:/name/3``, ``models:/id``,
    ``runs:/id/model``, or a folder.

    :raises TrackingError: when there is none, or it is of another kind.
    """
    quieten()
    try:
        with downloaded(uri) as folder:
            module, about = load_folder(folder, uri)
            saved = Model.load(str(folder))
    except (MlflowException, OSError, ValueError) as error:
        message = getattr(error, "message", None) or str(error)
        raise TrackingError(
            f"model={uri}: cannot be loaded from {mlflow.get_tracking_uri()}: {message} "
            f"(models are named like models:/{REGISTERED_NAME}@{CHAMPION} or runs:/RUN_ID/model)"
        ) from error
    return LoadedModel(
        module,
        about["classes"],
        about["image_size"],
        about.get("resize", "stretch"),
        identity=str(saved.model_uuid or uri),
        run_id=saved.run_id,
        label_names=about.get("label_names") or about["classes"],
    )


@dataclass(frozen=True)
class Registration:
    """A registered version, the alias it got, and why, in words."""

    name: str
    version: str
    alias: str
    reason: str

    @property
    def uri(self) -> str:
        """What ``mlflow.pytorch.load_model`` and the others take."""
        return f"models:/{self.name}@{self.alias}"


def register_model(
    run_id: str, name: str = REGISTERED_NAME, *, promote: bool = False
) -> Registration:
    """Register the model that a run has logged, and give it an alias.

    It becomes the champion when there is none, when its test accuracy is higher than the
    champion's on the same split (equal data digest), or when ``promote`` insists; else the
    challenger. Final models of cross-validations are compared by their cross-validated accuracy on
    the same folds.

    :raises TrackingError: for an unknown run, a run without a model of this project, or a
        registry that does not answer; the aliases are then as before.
    """
    client = MlflowClient()
    quieten()
    run = find_run(run_id)
    with _told(f"run {run_id} cannot be registered as {name}"):
        model_id = _latest_model(client, run)
        if model_id is None:
            raise TrackingError(
                f"run {run_id} has logged no model (its status is {run.info.status}); register a "
                "run that has ended well."
            )
        # Before it has a version, too: what is no model of this project leaves nothing behind.
        _check_model(f"models:/{model_id}")
        facts = {k: run.data.tags[k] for k in _TAGS if k in run.data.tags}
        facts |= {k: repr(run.data.metrics[k]) for k in _METRICS if k in run.data.metrics}
        version = mlflow.register_model(f"models:/{model_id}", name, tags=facts)
        _check(client, version)
        # Read only now: another registration may have moved the alias meanwhile.
        champion = find_version(client, name, CHAMPION)
        alias, reason = decide(facts, champion, promote)
        client.set_registered_model_alias(name, alias, version.version)
        _describe(client, version, version_card(run, reason))
    return Registration(name, str(version.version), alias, reason)


def _describe(client: MlflowClient, version: ModelVersion, card: str) -> None:
    """Describe a version, and the registered model where nobody has described it yet."""
    client.update_model_version(version.name, version.version, card)
    if not client.get_registered_model(version.name).description:
        client.update_registered_model(version.name, model_card(version.name))


def _latest_model(client: MlflowClient, run: Run) -> str | None:
    """The last model that a run has logged whole: one that was interrupted may have left others."""
    whole = []
    for output in run.outputs.model_outputs if run.outputs else []:
        with suppress(MlflowException):  # one that was deleted
            model = client.get_logged_model(output.model_id)
            if model.status == LoggedModelStatus.READY:
                whole.append((model.creation_timestamp, model.model_id))
    return max(whole)[1] if whole else None


def _check_model(uri: str) -> None:
    """:raises TrackingError: when a logged model does not compute what it did when saved."""
    with downloaded(uri) as folder:
        check_probe(folder, uri)


def _check(client: MlflowClient, version: ModelVersion) -> None:
    """Load a version back by its number, since that is what the alias will name."""
    try:
        _check_model(f"models:/{version.name}/{version.version}")
    except (TrackingError, MlflowException, OSError) as error:
        client.set_model_version_tag(version.name, version.version, REFUSED_TAG, str(error))
        raise


def decide(
    candidate: dict[str, str], champion: ModelVersion | None, promote: bool
) -> tuple[str, str]:
    """The alias for a candidate with these tags, and the reason in words."""
    if champion is None:
        return CHAMPION, "there was no champion"
    insist = "register it with promote=true to make it the champion all the same"
    if promote:
        return CHAMPION, f"promote=true, before version {champion.version}"
    mine, its = candidate.get("data_digest"), champion.tags.get("data_digest")
    if not mine or mine != its:
        return CHALLENGER, (
            f"it cannot be compared with the champion (version {champion.version}): their splits "
            f"differ (data_digest {mine} and {its}); {insist}"
        )
    if (seen := candidate.get(SEEN_TEST_TAG, "0")) != "0":
        return CHALLENGER, (
            f"its test accuracy is not comparable: the weights that it started from have seen "
            f"{seen} of the test photos; {insist}"
        )
    # An equal digest means the same split, or the same folds.
    claim = next((name for name in _CLAIMS if name in candidate), "test_accuracy")
    new, old = (float(tags.get(claim, "nan")) for tags in (candidate, champion.tags))
    if math.isnan(new) or math.isnan(old):
        return CHALLENGER, (
            f"it cannot be compared with the champion (version {champion.version}): one of them "
            f"has no {_CLAIMS[claim]}; {insist}"
        )
    if new > old:
        return (
            CHAMPION,
            f"{_CLAIMS[claim]} {new:.1%}, before {old:.1%} of version {champion.version}",
        )
    return CHALLENGER, (
        f"{_CLAIMS[claim]} {new:.1%} is not higher than {old:.1%} of the champion (version "
        f"{champion.version}); {insist}"
    )


def find_version(client: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    """The version that an alias names, or None where the name or the alias is not there."""
    try:
        return client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


@contextmanager
def _told(what: str) -> Iterator[None]:
    try:
        yield
    except (MlflowException, OSError) as error:
        message = getattr(error, "message", None) or str(error)
        raise TrackingError(
            f"{what}: {message.rstrip('. ')}. No alias has moved. The model is still in its run."
        ) from error
