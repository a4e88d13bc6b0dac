"""`python -m widefit` is the command `widefit`."""

from widefit.cli import main

if __name__ == "__main__":
    main()
