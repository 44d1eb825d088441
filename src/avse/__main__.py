"""Run the command line as `python -m avse`."""

from avse.cli import main

raise SystemExit(main())
