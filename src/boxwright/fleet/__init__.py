"""The same jobs over many files, GPUs and machines, with nothing lost.

A job is cut into shards, each a function of the listing, the artefact and the settings alone.
Whoever does a shard, and however often, the result is the same file, which appears whole or not at
all; so that after any crash only the missing shards are done. See docs/decisions/0012-fleet.md.
"""

from __future__ import annotations

from boxwright.fleet.job import Format, Pace, Settings
from boxwright.fleet.predict import FleetSummary, Places, fleet_predict

__all__ = ["FleetSummary", "Format", "Pace", "Places", "Settings", "fleet_predict"]
