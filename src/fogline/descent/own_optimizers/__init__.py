"""Optimizers that PyTorch does not have, or has only slowly: each file one method, its equations first."""

from fogline.descent.own_optimizers.lion import Lion as Lion
from fogline.descent.own_optimizers.muon import Muon as Muon
from fogline.descent.own_optimizers.musgd import MuSGD as MuSGD
from fogline.descent.own_optimizers.prodigy import Prodigy as Prodigy
from fogline.descent.own_optimizers.schedule_free import ScheduleFreeAdamW as ScheduleFreeAdamW
from fogline.descent.own_optimizers.schedule_free import to_eval as to_eval
from fogline.descent.own_optimizers.schedule_free import to_train as to_train
