"""The peer: RecTools' SASRec, by default with its own training, on the same training log. It has its own environment.

    python rectools_sasrec.py TRAIN.csv.gz RECS.jsonl [--seconds N | --sampled] [--seed N]

Writes twenty unseen items for every user, and prints a JSON object with the seconds that training took. Trained for a
time, it takes the weights with the least validation loss, on the last events of as many users as judge Longtide. Where
the softmax is sampled, its settings are those by which it does well on sparse logs.
"""

import argparse
import json
import time
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from pytorch_lightning import Trainer, seed_everything
from pytorch_lightning.callbacks import ModelCheckpoint
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel

JUDGES = 3000
SAMPLED = {"loss": "sampled_softmax", "n_negatives": 256, "n_factors": 128, "epochs": 12}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("train", type=Path)
    parser.add_argument("recs", type=Path)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--seconds", type=int, help="train as long as this, instead of RecTools' default of 3 epochs")
    how.add_argument("--sampled", action="store_true", help="estimate the softmax from a sample")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    seed_everything(asked.seed)

    names = {"user_id": str, "item_id": str}
    log = pd.read_csv(asked.train, usecols=[*names, "timestamp"], dtype=names, keep_default_na=False)
    log = log.rename(columns={"user_id": Columns.User, "item_id": Columns.Item, "timestamp": Columns.Datetime})
    # RecTools wants dates; where times are equal, the order of the file is kept by a growing nanosecond.
    place = log.groupby(Columns.User).cumcount()
    log[Columns.Datetime] = pd.to_datetime(log[Columns.Datetime], unit="s") + pd.to_timedelta(place, unit="ns")
    log[Columns.Weight] = 1.0
    dataset = Dataset.construct(log)

    with TemporaryDirectory() as folder:
        limit = {
            "get_trainer_func": timed_trainer,
            "get_trainer_func_kwargs": {"seconds": asked.seconds, "folder": folder},
            "get_val_mask_func": last_of_some,
            "get_val_mask_func_kwargs": {"seed": asked.seed},
        }
        model = SASRecModel(**(limit if asked.seconds else SAMPLED if asked.sampled else {}))
        begun = time.monotonic()
        model.fit(dataset)
        seconds, trainer = time.monotonic() - begun, model.fit_trainer
        if best := getattr(trainer.checkpoint_callback, "best_model_path", ""):  # of an epoch that was finished
            model.load_weights_from_checkpoint(best)
    users = log[Columns.User].unique()
    found = model.recommend(users=users, dataset=dataset, k=20, filter_viewed=True)
    lists = found.sort_values([Columns.User, Columns.Rank]).groupby(Columns.User)[Columns.Item].apply(list)
    with asked.recs.open("w", encoding="utf-8") as file:
        for user, items in lists.items():
            file.write(json.dumps({"user_id": str(user), "items": [str(item) for item in items]}) + "\n")
    print(
        json.dumps(
            {"train_s": round(seconds, 1), "epochs": round(trainer.global_step / trainer.num_training_batches, 1)}
        )
    )


def timed_trainer(seconds: int, folder: str) -> Trainer:
    """Like RecTools' own, but that it is the time that ends it, and that the best epoch is kept."""
    limit = timedelta(seconds=seconds)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    best = ModelCheckpoint(folder, monitor="val_loss", mode="min")
    return Trainer(max_epochs=-1, max_time=limit, callbacks=[best], devices=1, **quiet)


def last_of_some(log: pd.DataFrame, seed: int) -> np.ndarray:
    """Whether each event is the last one of a user who judges."""
    users = log[Columns.User].drop_duplicates()
    judges = users.sample(min(JUDGES, len(users)), random_state=seed)
    last = log.groupby(Columns.User)[Columns.Datetime].rank(method="first", ascending=False) == 1
    return np.asarray(last & log[Columns.User].isin(judges))


if __name__ == "__main__":
    main()
