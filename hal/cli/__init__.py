"""The `hal` command: one module per subcommand; a new one has `command` and a name in `app.COMMANDS`."""


def main() -> None:
    """Entry point of the console script."""
    from hal.cli.app import app

    app()
