"""Training programs with known faults, each beside its healthy twin, to score any tool that diagnoses training.

>>> from faults import programs, twins
>>> {program.half for program in programs()} == {"calibration", "evaluation"}
True
"""

from faults.program import Program as Program

HALVES = ("calibration", "evaluation")


def programs(half: str | None = None) -> list[Program]:
    """All programs, or those of one half: healthy ones first."""
    from importlib import import_module

    if half is not None and half not in HALVES:
        raise ValueError(f"expected one of {HALVES} as half, received {half!r}")
    return [program for name in HALVES if half in (None, name) for program in import_module(f"faults.{name}").PROGRAMS]


def twins(half: str | None = None) -> list[tuple[Program, Program]]:
    """Each faulty program beside the healthy one it was made from."""
    by_name = {program.name: program for program in programs(half)}
    return [(program, by_name[program.twin]) for program in by_name.values() if program.causes]
