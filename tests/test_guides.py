"""The front page and the guides: what they link to is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GUIDES = ("README.md", "CHANGELOG.md", "sdk/README.md", "server/README.md", "server/longtide_server/training/README.md")


def anchors(text: str) -> set[str]:
    """What GitHub calls the headings: in small letters, punctuation left out, hyphens for spaces."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("guide", GUIDES)
def test_every_link_leads_somewhere(guide):
    page = ROOT / guide
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


def test_anchors_are_those_of_the_headings_alone():
    assert anchors("# Is it any good?\n```sh\n# no heading\n```\n## Ask, then write\n") == {
        "is-it-any-good",
        "ask-then-write",
    }
