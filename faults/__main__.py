"""python -m faults: all of it, one table. See faults/report.py."""

import sys

from faults.report import main

sys.exit(main())
