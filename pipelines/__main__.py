"""`python -m pipelines` is `reid`."""

from pipelines.cli import main

main()
