"""The front door: `adapterhub …`. Data goes to stdout, everything else to stderr."""

from adapterhub.cli._app import main

__all__ = ["main"]
