"""A trivial model, packed as an archive; and what the tests of TorchServe's life need."""

from pathlib import Path

import pytest
import torch

from longtide_server.torchserve import TorchServeConfig, build_archive

HERE = Path(__file__).parent


class Doubler(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "doubler.pt"
    torch.jit.script(Doubler()).save(str(path))
    return path


@pytest.fixture(scope="session")
def pack(weights, tmp_path_factory):
    """Pack the echo handler with a configuration of its own."""

    def packed(**config):
        out = tmp_path_factory.mktemp("archive") / "echo.mar"
        handler = HERE / "longtide_echo_handler.py"
        build_archive(out, model_name="echo", version="7", handler=handler, weights=weights, config=config)
        return out

    return packed


@pytest.fixture(scope="session")
def archive(pack):
    return pack(greeting="hello")


@pytest.fixture(scope="session")
def settings(archive):
    """Settings of a small instance; tests change what they are about."""

    def made(work_dir, **changes):
        base = {"archive": archive, "model_name": "echo", "device": "cpu", "jvm_heap_mb": 256}
        base |= {"startup_timeout_s": 60, "health_interval_s": 0.1}
        return TorchServeConfig(work_dir=work_dir, **(base | changes))

    return made
