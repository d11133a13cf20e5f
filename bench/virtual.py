# SPDX-License-Identifier: Apache-2.0
"""The replay in virtual time, which the benchmarks of scheduling share with tests/sim."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "sim"))

from replay import Asked as Asked
from replay import DynamicBatches as DynamicBatches
from replay import Felt as Felt
from replay import Gate as Gate
from replay import Replay as Replay
from replay import StaticBatches as StaticBatches
from replay import VirtualWorld as VirtualWorld
from replay import replay as replay
