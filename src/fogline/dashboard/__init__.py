"""``fogline ui``: the runs of a folder in the browser, live, on this machine only.

Nothing in here imports PyTorch. ``server`` opens the port, ``guard`` lets nobody else in, ``app`` says which address
shows what; ``runs`` and ``thinned`` read run folders, ``markup`` and the ``*_page`` modules write HTML, ``query`` runs
SQL in a process of its own.
"""
