"""`python -m server` is `tandem`."""

from server.cli import main

main()
