"""Loads an unpacked archive as TorchServe's worker would, with nothing of Longtide in reach: python -I bare_load.py DIR

TorchServe swallows an ImportError in a handler and looks for a built-in handler of that name; here it shows.
"""

import importlib
import json
import pathlib
import sys
import types

FORBIDDEN = {"longtide", "longtide_server", "longtide_handlers", "grpc", "ts", "structlog", "annoy"}


class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in FORBIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r} (a handler may use torch, numpy and the stdlib only)")


def main(folder):
    sys.meta_path.insert(0, Refuse())
    sys.path.insert(0, str(folder))
    manifest = json.loads((folder / "MAR-INF" / "MANIFEST.json").read_text())
    module = importlib.import_module(manifest["model"]["handler"].removesuffix(".py"))
    handlers = [c for c in vars(module).values() if isinstance(c, type) and c.__module__ == module.__name__]
    assert len(handlers) == 1, f"TorchServe wants one class in the handler file, found {handlers}"
    config = folder / manifest["model"].get("configFile", "none")
    context = types.SimpleNamespace(
        manifest=manifest,
        model_name=manifest["model"]["modelName"],
        model_yaml_config=json.loads(config.read_text()) if config.exists() else {},
        system_properties={"model_dir": str(folder), "gpu_id": None, "batch_size": 1, "server_version": "0.12.0"},
    )
    handlers[0]().initialize(context)
    print("initialised", handlers[0].__name__)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
