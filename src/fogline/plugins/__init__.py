"""Fogline inside the trainers of others, and what it records handed to the loggers of others.

Each module here imports its trainer or logger when it is imported itself, never before: ``import fogline`` knows none
of them.
"""
