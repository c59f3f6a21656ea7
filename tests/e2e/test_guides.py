"""The Python examples of the front page and of the SDK's guide, run as they stand against a real server."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ADDRESS = "127.0.0.1:50051"


def examples(guide: str) -> str:
    """A guide's examples in their order, as one program: later ones go on with what earlier ones made."""
    return "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / guide).read_text(), re.DOTALL))


@pytest.mark.parametrize("guide", ["README.md", "sdk/README.md"])
def test_its_examples_run(guide, server_address, client, capsys):
    program = examples(guide)
    assert ADDRESS in program
    made: dict[str, object] = {"__name__": "__main__"}
    try:
        exec(compile(program.replace(ADDRESS, server_address), guide, "exec"), made)
    finally:
        made["client"].close()
    assert len(capsys.readouterr().out.splitlines()) >= 10  # ten items, at least, are shown
