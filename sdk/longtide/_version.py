"""The version of the installed distribution."""

from importlib import metadata


def _installed_version() -> str:
    try:
        return metadata.version("longtide")
    except metadata.PackageNotFoundError:
        # A source tree on PYTHONPATH is importable without being installed.
        return "0.0.0"


__version__ = _installed_version()
