"""Fogline inside Keras 3 on the torch backend: the signals and findings of ``model.fit``.

::

    from fogline.plugins.keras import FoglineCallback
    model.fit(X, y, epochs=20, callbacks=[FoglineCallback()])
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fogline.errors import misfit, needed
from fogline.plugins.following import Followed, Following
from fogline.progress import ProgressFunction

keras: Any = needed("keras", "keras")

_Base: Any = keras.callbacks.Callback


class FoglineCallback(Followed, _Base):  # type: ignore[misc]
    """Watches what ``model.fit`` does, as :func:`fogline.watch` watches a loop of your own.

    A run begins with the training and ends with it. Losses are those of ``compute_loss``, penalties of layers included;
    held-out scores are the validation's, ``val_loss`` as ``loss``. Keras tells callbacks of no exception: as a context
    manager the callback closes the run also then.

    Args:
        runs, name, share, progress: as in :func:`fogline.watch`.

    Raises:
        ValueError: when training begins: Keras computes by another backend than torch, or ``jit_compile`` is on.

    Example::

        with FoglineCallback() as callback:
            model.fit(X, y, epochs=20, callbacks=[callback])
        print(callback.run.verdict)
    """

    def __init__(
        self,
        *,
        runs: str | Path = "runs",
        name: str | None = None,
        share: float = 0.02,
        progress: bool | ProgressFunction | None = None,
    ) -> None:
        super().__init__()
        self._following = Following(runs, name, share, progress)
        self._shadowed: list[tuple[Any, str]] = []

    def on_train_begin(self, logs: Any = None) -> None:
        """Open a run."""
        model, optimizer = self.model, self.model.optimizer
        if keras.backend.backend() != "torch":
            remedy = "set KERAS_BACKEND=torch before Keras is imported"
            raise misfit("Keras on the torch backend", keras.backend.backend(), remedy, "FoglineCallback")
        if model.jit_compile:
            remedy = "compile the model with jit_compile=False: a compiled step has nothing to hang on"
            raise misfit("a step that is not compiled", "jit_compile=True", remedy, "FoglineCallback")
        self._release()
        weights = _weights(model)
        steps = _steps(optimizer, weights)
        self._following.begin(weights, [steps])
        self._following.run.attach(model)
        if int(optimizer.iterations):
            self._following.resumed(int(optimizer.iterations))
        self._shadow(optimizer, "apply", steps.applied)
        self._shadow(model, "compute_loss", self._computed(model.compute_loss))

    def _shadow(self, owner: Any, name: str, function: Any) -> None:
        """Put a function in the place of a method of one object, until the training ends."""
        setattr(owner, name, function)
        self._shadowed.append((owner, name))

    def _computed(self, compute_loss: Any) -> Any:
        """``compute_loss`` that tells the run the loss, and the rows that went forward for it."""

        def computed(x: Any = None, y: Any = None, y_pred: Any = None, *args: Any, **kwargs: Any) -> Any:
            loss = compute_loss(x, y, y_pred, *args, **kwargs)
            if self._following.open and isinstance(loss, Tensor) and loss.requires_grad:
                self._following.run.forward(x)
                self._following.run.log(loss.detach())
            return loss

        return computed

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Stop where somebody asked for it."""
        if self._following.stopping:
            self.model.stop_training = True

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Log what validation found."""
        self._following.score({name: value for name, value in (logs or {}).items() if name.startswith("val_")})

    def on_train_end(self, logs: Any = None) -> None:
        """Close the run."""
        self._release()
        self._following.end()

    def _release(self) -> None:
        for owner, name in self._shadowed:
            delattr(owner, name)
        self._shadowed = []


class _Weights(nn.Module):
    """The trainable weights of a Keras model by the names that Keras gives them."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        for variable in model.trainable_weights:
            layer, _, name = variable.path.replace(".", "_").rpartition("/")
            if layer not in self._modules:
                self.add_module(layer, nn.Module())
            self.get_submodule(layer).register_parameter(name, variable.value)


class _Steps(Optimizer):
    """The steps of a Keras optimizer, with the hooks that one of PyTorch's has."""

    def __init__(self, optimizer: Any, weights: nn.Module) -> None:
        super().__init__(weights.parameters(), {"lr": float(optimizer.learning_rate)})
        self._optimizer, self._apply = optimizer, optimizer.apply
        self._arguments: tuple[Any, ...] = ()
        self._batches = 0

    def applied(self, gradients: Any, trainable_variables: Any = None) -> None:
        """In the place of ``apply``: a step, or a batch of one where Keras accumulates."""
        self._batches += 1
        if self._batches % (self._optimizer.gradient_accumulation_steps or 1):
            self._apply(gradients, trainable_variables)
            return
        self.param_groups[0]["lr"] = float(self._optimizer.learning_rate)
        self._arguments = gradients, trainable_variables
        self.step()
        self._arguments = ()

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self._apply(*self._arguments)


def _weights(model: Any) -> nn.Module:
    """Under the model's own class name, which is what a run is called by."""
    kind: type[nn.Module] = type(type(model).__name__, (_Weights,), {})
    return kind(model)


def _steps(optimizer: Any, weights: nn.Module) -> Any:
    """Under the name of the Keras optimizer, which a run says it was trained with; PyTorch's own where it has one."""
    name = type(optimizer).__name__
    known = {"__module__": "torch.optim", "__qualname__": name} if hasattr(torch.optim, name) else {}
    kind = type(name, (_Steps,), known or {"__module__": __name__, "__qualname__": _Steps.__name__})
    with torch.enable_grad():
        return kind(optimizer, weights)
