"""The `hal` command: one module per subcommand; a new one has `command` and a name in `app.COMMANDS`."""

import os


def main() -> None:
    """Entry point of the console script."""
    os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")  # only the backend that was asked for is imported
    from hal.cli.app import app

    app()
