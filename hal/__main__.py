"""`python -m hal`: the command line."""

from hal.cli import main

main()
