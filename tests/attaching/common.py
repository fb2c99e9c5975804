"""What the tests of attaching share."""

from __future__ import annotations

import apical

RULES = tuple(apical.rules())
WIRED = ("dfa", "ifa", "kp-direct", "np-direct", "sg-direct")
TRAINED = ("kp", "matched", "urfb", "kp-direct")
