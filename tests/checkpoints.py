"""A whole checkpoint of ours, for tests that read or damage one."""

from common.networks.checkpoint import ModelCard
from common.training.state import rng_state

CARD = ModelCard("toy", "net", {"channels": 3, "widths": [1, 2]}, ["ground", "thing"], {0: (0, 0, 0), 1: (1, 2, 3)},
                 normalization={"mean": [0.5] * 3, "std": [0.2] * 3}, threshold=0.45,
                 split={"train": ["a"], "val": ["b", "c"], "test": []}, scores={"miou": 0.5, "f1": None},
                 config={"lr": 1e-3}, data_root="/data")  # fmt: skip
ROW = {"epoch": 1, "lr": 0.1, "train_loss": 1.0, "val_loss": 2.0, "miou": 0.5, "f1": None}
TRAINING = {
    "epoch": 1, "batch": 0, "step": 3, "loss_sum": 0.0, "progress": 0.5, "best_iou": 0.5, "best_loss": 2.0,
    "epochs_without_better": 0, "threshold": 0.45, "history": [ROW], "optimizer": {"state": {}, "param_groups": []},
    "schedule": {"best_loss": 2.0, "bad_epochs": 0, "falls": 0}, "scaler": {}, "average": None, "average_updates": 0,
    "rng": rng_state(),
}  # fmt: skip
