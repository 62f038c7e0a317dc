"""Fogline beside a training loop of your own: three lines, and nothing in the loop changes.

    python examples/your_own_loop.py

Handwritten digits (scikit-learn's, nothing is downloaded), a small network, a loop as in any tutorial. Needs
``pip install scikit-learn``.
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn

import fogline


def main() -> None:
    torch.manual_seed(0)
    digits = load_digits()
    X = torch.tensor(digits.data, dtype=torch.float32) / 16  # (1797, 64), 0..1
    y = torch.tensor(digits.target)
    train, held_out = slice(0, 1400), slice(1400, None)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(X[train], y[train]), batch_size=64, shuffle=True, drop_last=True
    )

    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    loss_fn = nn.CrossEntropyLoss()
    epochs = 20
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)

    with fogline.watch(model, optimizer, loss_fn=loss_fn, scheduler=scheduler) as run:  # one
        for _ in range(epochs):
            model.train()
            for inputs, targets in loader:
                optimizer.zero_grad()
                loss = loss_fn(model(inputs), targets)
                loss.backward()
                optimizer.step()
                run.log(loss)  # two
            scheduler.step()

            model.eval()
            with torch.no_grad():
                outputs = model(X[held_out])
            accuracy = (outputs.argmax(dim=1) == y[held_out]).float().mean()
            run.log(valid=loss_fn(outputs, y[held_out]), accuracy=accuracy)  # three

    print(run.info["verdict"]["message"])
    print(f"held-out accuracy {run.final_scores()['accuracy']:.3f} after {len(run.steps)} recorded steps")
    print(f"watching took {run.info['watching']['share']:.1%} of the time")
    print(f"report: {run.report(run.folder / 'report.html')}")


if __name__ == "__main__":
    main()
