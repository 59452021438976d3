"""Names of tags, artifacts and experiments in MLflow, each defined once."""

DEFAULT_EXPERIMENT = "shopee"
REGISTERED_MODEL = "shopee-classifier"

# Tags of a run.
PROCESS_TAG = "process"  # the process that writes it
FAILURE_TAG = "failure"  # why it failed or was killed
CONTINUES_TAG = "continues"  # the run that goes on in its place
WEIGHTS_RUN_TAG = "weights_run"  # the run whose model it started from
STUDY_TAG = "study"
TRIAL_TAG = "trial"
STATE_TAG = "state"  # of a trial
REPEATS_TAG = "repeats"  # the trial that a trial repeats
VERSION_TAG = "shopee_mlflow_version"
DESCRIPTION_TAG = "mlflow.note.content"

# Artifacts of a training.
MANIFEST_FILE = "data/manifest.csv"
CLEANING_FILE = "data/cleaning.txt"
LEFT_OUT_FILE = "data/left_out.csv"
HISTORY_FILE = "training/history.csv"
PREDICTIONS_FILE = "test/predictions.csv"
REPORT_FILE = "report.html"
MODEL_NAME = "model"

# Artifacts of a search and of its trials.
BEST_FILE = "tune/best.yaml"
TRIAL_WEIGHTS_FILE = "trial/weights.pt"
TRIAL_HISTORY_FILE = "trial/history.csv"
