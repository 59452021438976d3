"""The model registry: register a run's model, compare it with the champion, move the alias.

The alias ``champion`` moves only to a version that was loaded and checked, and that has a higher
accuracy than the previous one on the same test photos. With ``promote`` the accuracy does not
matter.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
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
from .finding import RUN_ID, find_run
from .flavor import check_probe, load_folder
from .model_card import model_card, version_card
from .names import REGISTERED_MODEL, SEEN_TEST_TAG, WEIGHTS_RUN_TAG
from .store import NoModelFolderError, downloaded, quieten

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
    """A loaded model of this project.

    :ivar module: uint8 or float photos -> logits, in eval mode, on the CPU.
    :ivar label_names: readable names of ``classes``, in the same order.
    :ivar identity: an id of the model, which changes when its name refers to another model.
    :ivar run_id: the run that has logged the model; None for a model saved in a folder.
    """

    module: torch.nn.Module = field(repr=False)
    classes: list[str] = field(repr=False)
    image_size: int
    resize: str
    identity: str
    run_id: str | None = None
    label_names: list[str] = field(default_factory=list)


def _hint(uri: str) -> str:
    if RUN_ID.fullmatch(uri):
        return f"the model of this run is runs:/{uri}/model"
    return f"models are named like models:/{REGISTERED_NAME}@{CHAMPION} or runs:/RUN_ID/model"


def load_classifier(uri: str) -> LoadedModel:
    """Load a model by any MLflow URI: ``models:/name@alias``, ``models:/name/3``, ``models:/id``,
    ``runs:/id/model``, or a folder.

    :raises TrackingError: when there is no such model, or it was not made by this project.
    """
    quieten()
    try:
        with downloaded(uri) as folder:
            module, about = load_folder(folder, uri)
            saved = Model.load(str(folder))
    except NoModelFolderError as error:
        raise TrackingError(f"model={uri}: {error} ({_hint(uri)}).") from None
    except (MlflowException, OSError, ValueError) as error:
        message = getattr(error, "message", None) or str(error)
        raise TrackingError(
            f"model={uri}: cannot be loaded from {mlflow.get_tracking_uri()}: {message} "
            f"({_hint(uri)})"
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
    """A registered version, its alias, and the reason for the alias."""

    name: str
    version: str
    alias: str
    reason: str

    @property
    def uri(self) -> str:
        """The model URI, for ``mlflow.pytorch.load_model`` and the options of this project."""
        return f"models:/{self.name}@{self.alias}"


def register_model(
    run_id: str, name: str = REGISTERED_NAME, *, promote: bool = False
) -> Registration:
    """Register the model that a run has logged, and set an alias for it.

    It becomes the champion if there is none, if its test accuracy is higher than the champion's
    on the same split (equal data digest), or with ``promote``. Otherwise it becomes the challenger.
    Final models of cross-validations are compared by their cross-validated accuracy on the same
    folds.

    :raises TrackingError: for an unknown run, a run without a model of this project, or a
        registry that does not respond. The aliases are then unchanged.
    """
    client = MlflowClient()
    quieten()
    run = find_run(run_id)
    with _registry_errors(f"run {run_id} cannot be registered as {name}"):
        model_id = _latest_model(client, run)
        if model_id is None:
            raise TrackingError(
                f"run {run_id} has logged no model (its status is {run.info.status}); register a "
                "finished run."
            )
        # Checked before registering, so that a model of another kind leaves no version behind.
        _check_model(f"models:/{model_id}")
        facts = {k: run.data.tags[k] for k in _TAGS if k in run.data.tags}
        facts |= {k: repr(run.data.metrics[k]) for k in _METRICS if k in run.data.metrics}
        version = mlflow.register_model(f"models:/{model_id}", name, tags=facts)
        _check_version(client, version)
        # Read as late as possible, since another registration may move the alias.
        champion = find_version(client, name, CHAMPION)
        alias, reason = decide(facts, champion, promote)
        client.set_registered_model_alias(name, alias, version.version)
        _describe(client, version, version_card(run, reason))
    return Registration(name, str(version.version), alias, reason)


def _describe(client: MlflowClient, version: ModelVersion, card: str) -> None:
    """Describe a version, and the registered model if it has no description yet."""
    client.update_model_version(version.name, version.version, card)
    if not client.get_registered_model(version.name).description:
        client.update_registered_model(version.name, model_card(version.name))


def _latest_model(client: MlflowClient, run: Run) -> str | None:
    """The last complete model of a run; interrupted attempts may have left incomplete ones."""
    complete = []
    for output in run.outputs.model_outputs if run.outputs else []:
        with suppress(MlflowException):  # a deleted model
            model = client.get_logged_model(output.model_id)
            if model.status == LoggedModelStatus.READY:
                complete.append((model.creation_timestamp, model.model_id))
    return max(complete)[1] if complete else None


def _check_model(uri: str) -> None:
    """Load a model and compare its logits with those stored with it.

    :raises TrackingError: when they differ.
    """
    with downloaded(uri) as folder:
        check_probe(folder, uri)


def _check_version(client: MlflowClient, version: ModelVersion) -> None:
    """Check a version by its number, which the alias will refer to; tag it if it is refused."""
    try:
        _check_model(f"models:/{version.name}/{version.version}")
    except (TrackingError, MlflowException, OSError) as error:
        client.set_model_version_tag(version.name, version.version, REFUSED_TAG, str(error))
        raise


def decide(
    candidate: dict[str, str], champion: ModelVersion | None, promote: bool
) -> tuple[str, str]:
    """The alias for a candidate with these tags, and the reason for it, as text."""
    seen = _words_of_seen(candidate)
    if champion is None:
        return CHAMPION, f"there was no champion{f'; beware: {seen}' if seen else ''}"
    insist = "to make it the champion anyway, register it with promote=true"
    if promote:
        return CHAMPION, f"promote=true; the champion was version {champion.version}"
    mine, its = candidate.get("data_digest"), champion.tags.get("data_digest")
    if not mine or mine != its:
        return CHALLENGER, (
            f"it cannot be compared with the champion (version {champion.version}): their splits "
            f"differ (data_digest {mine} and {its}); {insist}"
        )
    if seen:
        return CHALLENGER, f"{seen}; {insist}"
    if its_seen := _words_of_seen(champion.tags):
        return CHALLENGER, f"of the champion (version {champion.version}), {its_seen}; {insist}"
    # Equal digests mean equal splits or equal folds, so both have the same kind of accuracy.
    claim = next((name for name in _CLAIMS if name in candidate), "test_accuracy")
    new, old = (float(tags.get(claim, "nan")) for tags in (candidate, champion.tags))
    if math.isnan(new) or math.isnan(old):
        return CHALLENGER, (
            f"it cannot be compared with the champion (version {champion.version}): one of them "
            f"has no {_CLAIMS[claim]}; {insist}"
        )
    if new > old:
        return CHAMPION, (
            f"{_CLAIMS[claim]} {new:.1%} is higher than {old:.1%} of version {champion.version}"
        )
    return CHALLENGER, (
        f"{_CLAIMS[claim]} {new:.1%} is not higher than {old:.1%} of the champion (version "
        f"{champion.version}); {insist}"
    )


def _words_of_seen(tags: Mapping[str, str]) -> str:
    """Why a test accuracy is too high, by the tags of its version; empty if it is not."""
    count = tags.get(SEEN_TEST_TAG, "0")
    if count == "0":
        return ""
    if not count.isdigit():
        return (
            "the test accuracy is not comparable: it is unknown whether the weights that the "
            "training started from have seen test photos"
        )
    return (
        f"the test accuracy is not comparable: the weights that the training started from have "
        f"seen {count} of the test photos"
    )


def find_version(client: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    """The version that an alias refers to, or None if the name or the alias does not exist."""
    try:
        return client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


@contextmanager
def _registry_errors(what: str) -> Iterator[None]:
    """Raise errors of the registry as TrackingError.

    :param what: what failed, for the message.
    """
    try:
        yield
    except (MlflowException, OSError) as error:
        message = getattr(error, "message", None) or str(error)
        raise TrackingError(
            f"{what}: {message.rstrip('. ')}. No alias has moved. The model is still in its run."
        ) from error
