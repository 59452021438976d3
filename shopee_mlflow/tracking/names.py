"""Names of tags, artifacts and experiments in MLflow, each defined once."""

# The experiments of trainings and searches, and of evaluations, comparisons and explorations.
DEFAULT_EXPERIMENT = "shopee"
ANALYSIS_EXPERIMENT = "shopee-analysis"
REGISTERED_MODEL = "shopee-classifier"

# Tags of a run.
KIND_TAG = "kind"  # the command that opened it; one of the kinds below
PROCESS_TAG = "process"  # the process that writes it
FAILURE_TAG = "failure"  # why it failed or was killed
CONTINUES_TAG = "continues"  # the run in which it was continued
WEIGHTS_RUN_TAG = "weights_run"  # the run whose model it started from
SEEN_TEST_TAG = "test_photos_seen_by_weights"  # number of test photos that run has seen
STUDY_TAG = "study"
TRIAL_TAG = "trial"
STATE_TAG = "state"  # of a trial
CROSS_VALIDATION_TAG = "cross_validation"  # digest of what affects its result
FOLD_TAG = "fold"  # the fold that a run tests
REPEATS_TAG = "repeats"  # the earlier trial that this trial repeats
VERSION_TAG = "shopee_mlflow_version"
DESCRIPTION_TAG = "mlflow.note.content"
DIGEST_TAG = "data_digest"  # of photos, labels and splits or folds
PARENT_TAG = "mlflow.parentRunId"
LONGEST_REASON = 5000  # characters of FAILURE_TAG

# Kinds of runs: the command, a trial of a search, a fold or the final model of a cross-validation.
TRAIN, TUNE, TRIAL, EXPERIMENTS = "train", "tune", "trial", "experiments"
CROSS_VALIDATE, FOLD, REFIT = "cross-validate", "fold", "refit"
EVALUATE, COMPARE, EXPLORE, MATCH = "evaluate", "compare", "explore", "match"
NOT_STARTED = "not-started"  # mlflow run created it for a command that was refused
TRAININGS = (TRAIN, TUNE, CROSS_VALIDATE, EXPERIMENTS)
ANALYSES = (EVALUATE, COMPARE, EXPLORE, MATCH)

# Artifacts of a training.
MANIFEST_FILE = "data/manifest.csv"
CLEANING_FILE = "data/cleaning.txt"
PROFILE_FILE = "data/counts.json"
LEFT_OUT_FILE = "data/left_out.csv"
CORRECTIONS_FILE = "data/corrections.csv"
HISTORY_FILE = "training/history.csv"
PREDICTIONS_FILE = "test/predictions.csv"
CALIBRATION_FILE = "test/calibration.json"
STRANGERS_FILE = "test/strangers.json"
STRANGER_PHOTOS_FILE = "test/strangers.csv"
STRANGER_CURVE_FILE = "test/stranger_curve.csv"
REPORT_FILE = "report.html"
MODEL_NAME = "model"

# Artifacts of a search and of its trials.
BEST_FILE = "tune/best.yaml"
TRIAL_WEIGHTS_FILE = "trial/weights.pt"
TRIAL_HISTORY_FILE = "trial/history.csv"

# Artifacts of a cross-validation, and the logits of one of its folds.
CV_HISTORY_FILE = "cv/history.csv"
CV_PREDICTIONS_FILE = "cv/predictions.csv"
CV_LOGITS_FILE = "cv/logits.pt"
CV_FOLDS_FILE = "cv/folds.csv"
CV_ISSUES_FILE = "cv/label_issues.csv"
CV_CALIBRATION_FILE = "cv/calibration.json"
CV_STRANGERS_FILE = "cv/strangers.json"
CV_STRANGER_CURVE_FILE = "cv/stranger_curve.csv"
FOLD_LOGITS_FILE = "test/logits.pt"
FOLD_NEAREST_FILE = "test/nearest_photos.csv"


def analyses_of(experiment: str) -> str:
    """The experiment for analyses of another one's trainings: shopee-analysis for shopee."""
    suffix = ANALYSIS_EXPERIMENT.removeprefix(DEFAULT_EXPERIMENT)
    return experiment if experiment.endswith(suffix) else experiment + suffix
