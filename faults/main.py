"""A worker process of chaos: a lesson's own `main.py worker`, with the tasks that sleep as well.

main.py worker --name NAME [OPTIONS] DIRECTORY
"""

import sys
from pathlib import Path

from faults import workloads
from shared.testing import load

if __name__ == "__main__":
    *arguments, directory = sys.argv[1:]
    modules = load(Path(directory))
    workloads.register_sleepers(modules)
    modules.main.main(arguments)
