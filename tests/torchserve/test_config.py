"""What TorchServe is told."""

import pytest

from longtide_server.errors import InvalidInput
from longtide_server.torchserve.config import Folders, Ports, TorchServeConfig, environment, model_settings, properties
from longtide_server.torchserve.ports import choose_ports


def text(tmp_path, **changes):
    config = TorchServeConfig(**({"work_dir": tmp_path, "archive": tmp_path / "a.mar", "model_name": "enc"} | changes))
    return properties(config, Ports(1, 2, 3, 4), Folders(config.work_dir)).splitlines()


def test_everything_listens_on_loopback_only(tmp_path):
    addresses = [line for line in text(tmp_path) if "address" in line]
    assert len(addresses) == 4
    assert all("127.0.0.1" in line for line in addresses)


def test_calls_are_never_batched(tmp_path):
    settings = model_settings(TorchServeConfig(work_dir=tmp_path, archive=tmp_path, model_name="enc", workers=3))
    assert settings == {
        "minWorkers": 3,
        "maxWorkers": 3,
        "batchSize": 1,
        "maxBatchDelay": 1,
        "responseTimeout": 30,
        "startupTimeout": 120,
    }


def test_the_cpu_is_asked_for_by_hiding_the_gpus(tmp_path):
    assert "number_of_gpu=0" in text(tmp_path, device="cpu")
    assert not any(line.startswith("number_of_gpu") for line in text(tmp_path))


def test_letters_outside_latin_1_are_escaped_for_java(tmp_path):
    assert f"model_store={tmp_path}/caf\\u00e9/models" in text(tmp_path, work_dir=tmp_path / "café")


def test_torchserves_own_variables_cannot_override_ours(tmp_path, monkeypatch):
    monkeypatch.setenv("TS_CONFIG_FILE", "/elsewhere")
    config = TorchServeConfig(work_dir=tmp_path, archive=tmp_path, model_name="enc", threads_per_worker=2)
    seen = environment(config, Folders(tmp_path), tmp_path / "tmp")
    assert "TS_CONFIG_FILE" not in seen
    assert seen["OMP_NUM_THREADS"] == "2"
    assert seen["JAVA_HOME"].endswith("java-runtime")


@pytest.mark.parametrize(("cores", "workers", "threads"), [(8, 1, 8), (8, 3, 2), (2, 4, 1)])
def test_workers_share_the_cores(tmp_path, monkeypatch, cores, workers, threads):
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    config = TorchServeConfig(work_dir=tmp_path, archive=tmp_path, model_name="enc", workers=workers)
    assert environment(config, Folders(tmp_path), tmp_path / "tmp")["OMP_NUM_THREADS"] == str(threads)


@pytest.mark.parametrize(
    "changes", [{"model_name": "a=b"}, {"workers": 0}, {"threads_per_worker": -1}, {"job_queue_size": 0}]
)
def test_a_wrong_setting_is_named(tmp_path, changes):
    with pytest.raises(InvalidInput, match=next(iter(changes))):
        text(tmp_path, **changes)


def test_free_ports_differ_and_a_given_one_is_kept(tmp_path):
    config = TorchServeConfig(work_dir=tmp_path, archive=tmp_path, model_name="enc", grpc_inference_port=7070)
    ports = choose_ports(config)
    assert ports.grpc_inference == 7070
    assert len({ports.grpc_inference, ports.grpc_management, ports.http_inference, ports.http_management}) == 4
