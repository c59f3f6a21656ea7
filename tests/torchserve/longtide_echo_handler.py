"""A handler for tests: it tells what it was given, and misbehaves when asked to."""

import json
import os
import time
from pathlib import Path

import torch


class EchoHandler:
    def initialize(self, context):
        config = context.model_yaml_config or {}
        if config.get("broken"):
            raise RuntimeError("broken on purpose")
        folder = Path(context.system_properties["model_dir"])
        self.model = torch.jit.load(folder / context.manifest["model"]["serializedFile"])
        self.greeting = config.get("greeting", "")

    def handle(self, data, context):
        return [self.answer(row, context) for row in data]

    def answer(self, row, context):
        if "sleep_s" in row:
            time.sleep(float(row["sleep_s"]))
        if "hold" in row:
            self.hold(Path(bytes(row["hold"]).decode()))
        if "fail" in row:
            raise ValueError("asked to fail")
        if "exit" in row:
            os._exit(3)
        if "size" in row:
            return b"x" * int(row["size"])
        if "describe" in row:
            return self.describe(row, context)
        return bytes(row["body"])

    def hold(self, folder):
        """Keep the worker until somebody says to go on."""
        (folder / "begun").touch()
        while not (folder / "go on").exists():
            time.sleep(0.01)

    def describe(self, row, context):
        doubled = self.model(torch.ones(2)).tolist()
        about = {
            "types": {name: type(value).__name__ for name, value in row.items()},
            "doubled": doubled,
            "greeting": self.greeting,
            "threads": torch.get_num_threads(),
            "pid": os.getpid(),
            "gpu_id": context.system_properties["gpu_id"],
            "batch_size": context.system_properties["batch_size"],
        }
        return json.dumps(about).encode()
