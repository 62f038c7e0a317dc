"""Published diagnosis tools at the programs of ``benchmarks/faults``: a plain loop, adapters, and what alarms mean."""
