"""Train with quantising activations (QCFS) in your own loop, convert, and compare the spiking network with the trained one.

python examples/qcfs_digits.py
"""

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

import transpike
from transpike.demo import digits_net
from transpike.methods.qcfs import QCFS, prepare
from transpike.tasks.data import digits


def main(epochs: int = 3, levels: int = 4) -> None:
    torch.manual_seed(0)
    train, test = DataLoader(digits("train"), batch_size=64, shuffle=True), DataLoader(digits("test"), batch_size=450)
    method = QCFS(levels=levels)
    net = prepare(digits_net(), method, [x for x, _ in train])  # a copy: your network stays as it is
    print(f"{levels} levels, before training: {accuracy(net, test):.2%}")

    ceilings = list(net.ceilings)
    weights = list(net.network.parameters())
    groups = [{"params": weights, "weight_decay": 5e-4}, {"params": ceilings, "weight_decay": 0.0}]
    optimiser = torch.optim.SGD(groups, lr=0.02, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * len(train))
    for epoch in range(epochs):
        net.train()
        for x, y in train:
            loss = cross_entropy(net(x), y)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        print(f"epoch {epoch + 1}: {accuracy(net, test):.2%}")

    spiking = transpike.convert(net, method, train)  # thresholds are the learned ceilings
    report = transpike.evaluate(spiking, test, steps=16)
    for steps in (levels, 8, 16):
        print(f"{steps:2} steps: {report.at(steps):.2%}")


def accuracy(net: torch.nn.Module, batches: DataLoader) -> float:
    net.eval()
    with torch.no_grad():
        hits = [(net(x).argmax(1) == y).float() for x, y in batches]
    return float(torch.cat(hits).mean())


if __name__ == "__main__":
    main()
