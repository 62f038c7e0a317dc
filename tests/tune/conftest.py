"""Searches need Optuna."""

from __future__ import annotations

import importlib.util

collect_ignore = [] if importlib.util.find_spec("optuna") else ["test_sampling.py", "test_search.py", "test_storage.py"]
