"""python -m bench.engines ENGINE setup URL SLOTS
python -m bench.engines ENGINE fill URL TASK INPUT COUNT      INPUT is JSON
python -m bench.engines ENGINE work URL SLOTS                 until it is killed
"""

import json
import sys
from importlib import import_module

engine, verb, url, *rest = sys.argv[1:]
module = import_module(f"bench.engines.{engine}")
if verb == "fill":
    task, input, count = rest
    module.fill(url, task, json.loads(input), int(count))
else:
    getattr(module, verb)(url, int(rest[0]))
