"""What this machine is and can do, and why not; docs/doctor.md."""

from __future__ import annotations

from boxwright.doctor.files import judge_file
from boxwright.doctor.judgement import judge
from boxwright.doctor.probe import look_at_machine
from boxwright.doctor.records import Jetson, Machine, PlanLibrary, Provider, Runtime, Verdict

__all__ = [
    "Jetson",
    "Machine",
    "PlanLibrary",
    "Provider",
    "Runtime",
    "Verdict",
    "judge",
    "judge_file",
    "look_at_machine",
]
