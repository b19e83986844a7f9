"""`python -m goalstate.cli`: the same as `goalstate`."""

from goalstate.cli import main

main()
