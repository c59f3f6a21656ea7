"""Finding the reason of a failure in TorchServe's logs."""

from longtide_server.torchserve.logs import LogFolder, reason

SWALLOWED = """\
2026-11-24T22:52:48,644 INFO  W-9000-echo_1-stdout MODEL_LOG - Traceback (most recent call last):
2026-11-24T22:52:48,644 INFO  W-9000-echo_1-stdout MODEL_LOG - ModuleNotFoundError: No module named 'pandas'
2026-11-24T22:52:48,644 INFO  W-9000-echo_1-stdout MODEL_LOG - During handling of the above exception, another ...
2026-11-24T22:52:48,644 INFO  W-9000-echo_1-stdout MODEL_LOG - ModuleNotFoundError: No module named 'ts.torch_handler.x'
"""


def test_the_first_exception_is_the_reason():
    assert reason(SWALLOWED) == "ModuleNotFoundError: No module named 'pandas'"


def test_a_java_exception_counts_too():
    assert reason("x\njava.io.IOException: Failed to bind to address: :1\n\tat A") == (
        "java.io.IOException: Failed to bind to address: :1"
    )


def test_without_one_it_says_so():
    assert reason("all is well") == "its log names no exception"


def test_only_the_latest_launch_is_read(tmp_path):
    logs = LogFolder(tmp_path)
    (tmp_path / "torchserve.log").write_text("old\n")
    logs.mark()
    with (tmp_path / "torchserve.log").open("a") as log:
        log.write("new\n")
    assert logs.text() == "new\n"
