"""TorchServe as a part of the server: its archive, its process and its calls. Never imports torch."""

from longtide_server.torchserve.archive import build_archive
from longtide_server.torchserve.client import TorchServeClient
from longtide_server.torchserve.config import TorchServeConfig
from longtide_server.torchserve.process import TorchServe

__all__ = ["TorchServe", "TorchServeClient", "TorchServeConfig", "build_archive"]
