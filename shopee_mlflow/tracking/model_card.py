"""Descriptions of the registered model and its versions, for MLflow's UI."""

from __future__ import annotations

from mlflow.entities import Run

from .finding import unquoted
from .links import report_link, run_link
from .names import DESCRIPTION_TAG, REPORT_FILE


def model_card(name: str) -> str:
    """What the registered model is and how to use it, as Markdown."""
    return "\n\n".join(
        [
            "Product-photo classifier, trained with shopee_mlflow. For each photo it returns the "
            "most probable label group and its probability.",
            f"Load the current champion with `mlflow.pyfunc.load_model('models:/{name}@champion')` "
            "and call `predict` with a table that has a column `image`: the bytes of JPEG or other "
            "image files, or their base64 text.",
            "The alias `champion` moves only to a version that was loaded and checked and that has "
            "a higher accuracy on the same test photos, or in the same folds of a "
            "cross-validation. Other versions become the `challenger`. Each version's description "
            "has its accuracy and a link to its report.",
            "A photo that looks like none of the label groups is answered as `unknown`, unless the "
            "version was trained with `unknown=none`, is a `pt2` program, or had too few "
            "validation photos to choose such a threshold. Some photos "
            "of other products still get a label group: the report says how many, and its "
            "calibration tells how far to trust the probability.",
        ]
    )


def version_card(run: Run, reason: str) -> str:
    """A version's results, inputs and origin, as Markdown.

    :param run: the run that has logged the model.
    :param reason: the reason for the version's alias.
    """
    params = {name: unquoted(value) for name, value in run.data.params.items()}
    facts = {
        "input": f"photos of any size, resized to {params['image_size']} pixels"
        if "image_size" in params
        else "",
        "output": f"{run.data.tags['classes']} label groups" if "classes" in run.data.tags else "",
        "data digest": run.data.tags.get("data_digest", ""),
        "commit": run.data.tags.get("git_commit", ""),
        "alias when registered": reason,
    }
    description = run.data.tags.get(DESCRIPTION_TAG, "")
    lines = [f"- {name}: {value}" for name, value in facts.items() if value]
    lines.append(f"- trained in run {run_link(run.info.run_id)}")
    if REPORT_FILE not in description:
        link = report_link(run.info.experiment_id, run.info.run_id, REPORT_FILE)
        lines.append(f"- report: {link}")
    return "\n\n".join(part for part in (description, "\n".join(lines)) if part)
