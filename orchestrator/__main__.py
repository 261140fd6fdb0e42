"""`python -m orchestrator` is the command `lyricpod`."""

from orchestrator.cli import main

main()
