"""The command `widefit`: one file a command."""


def main() -> None:
    """Run the command line; ends the process with 0, 1 (the work failed), 2 (bad input) or 130 (interrupted)."""
    from widefit.cli.app import app
    from widefit.cli.streams import make_ready

    make_ready()
    app(prog_name="widefit")
