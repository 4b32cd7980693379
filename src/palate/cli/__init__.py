"""The command line: `palate COMMAND`, one file a command group.

Nothing heavy is imported before a command needs it, so that `palate --help` answers at once.
"""

from palate.cli.app import app, main

__all__ = ["app", "main"]
