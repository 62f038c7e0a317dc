"""Fogline inside Ultralytics' trainer: its YOLO models with our signals, learning rate, guard and diagnosis.

Two lines around the training that is there already::

    from fogline.plugins.ultralytics import watch

    watching = watch(yolo, guard=True)
    yolo.train(data="signs.yaml", epochs=100)
    watching.run.diagnose()

Nothing of Ultralytics is imported here: what is needed comes with the model that is handed over.
"""

from __future__ import annotations

from fogline.plugins.ultralytics.rate import find_lr as find_lr
from fogline.plugins.ultralytics.task import evaluate as evaluate
from fogline.plugins.ultralytics.task import recipe as recipe
from fogline.plugins.ultralytics.task import task as task
from fogline.plugins.ultralytics.watching import Watching as Watching
from fogline.plugins.ultralytics.watching import watch as watch
