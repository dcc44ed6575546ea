"""``python -m remerge``."""

from remerge.cli import main

main()
