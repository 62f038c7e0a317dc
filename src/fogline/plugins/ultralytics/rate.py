"""The learning rate of a YOLO, measured on its own data with its own loss, augmentation, optimizer and clip."""

from __future__ import annotations

from typing import Any

from fogline.descent.prepare import begin
from fogline.descent.randomness import Surroundings
from fogline.plugins.ultralytics.session import base_rate
from fogline.plugins.ultralytics.setting import setting
from fogline.plugins.ultralytics.task import recipe, task
from fogline.rate.find import Rate, measure_rate


def find_lr(yolo: Any, *, data: Any, **settings: Any) -> Rate:
    """Measure the learning rate that ``yolo.train(data=..., **settings)`` is best begun with.

    It is the rate of the group of the weights at the top of the schedule; the others keep their ratio to it. Hand it
    to :func:`~fogline.plugins.ultralytics.watch`, which sets it whatever the optimizer, ``"auto"`` included::

        rate = find_lr(yolo, data="signs.yaml", epochs=50)
        watch(yolo, lr=rate.value)
        yolo.train(data="signs.yaml", epochs=50)

    The rates race as in :func:`fogline.find_lr`, around the one that would be taken without asking: the curvature of a
    detector's first weights, almost all of whose answers are "nothing here", says little of the rate it can be trained
    with. Nothing is trained and nothing disturbed.

    Args:
        yolo: ``ultralytics.YOLO`` of the tasks detect, segment or classify.
        data, **settings: as in ``yolo.train``; the same as the training is then given.

    Returns:
        The rate, with interval, evidence and cost: at most 5 % of the steps, or 60 where that is more.

    Raises:
        TypeError, ValueError: it is no YOLO, or a setting is not known here.
    """
    found = setting(yolo, data, settings)
    _, optimizer = found.beginning()
    start = begin(task(yolo, data=data, **settings), recipe(yolo, data=data, **settings))
    with Surroundings(start.batches.device, start.threads):
        return measure_rate(start, around=base_rate(optimizer.param_groups))
