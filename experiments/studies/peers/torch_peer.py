"""The network in PyTorch: eager or compiled, in float32 or under bfloat16 autocast.

The data lie on the device as float32, a batch is one indexing, and nothing waits for the device
within an epoch.
"""

import time

import common
import torch
from torch import Tensor, nn
from torch.nn import functional

asked = common.settings()
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
torch.manual_seed(asked["seed"])
x_train, y_train, x_test, y_test = (
    torch.from_numpy(array).to(device) for array in common.arrays(asked)
)
layers, width = [], x_train.shape[1]
for units in asked["hidden"]:
    layers += [nn.Linear(width, units), nn.ReLU(), nn.Dropout(asked["dropout"])]
    width = units
network = nn.Sequential(*layers, nn.Linear(width, 10)).to(device)
for layer in network:
    if isinstance(layer, nn.Linear):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)
if asked["compiled"]:  # with what makes a small network faster than the defaults do
    from torch._inductor import config

    config.fallback_random = device.type == "cpu"
    graphs = None if device.type == "cpu" else "reduce-overhead"
    model = torch.compile(network, mode=graphs)
else:
    model = network
steps = asked["images"] // asked["batch_size"]
total, warmup = steps * asked["epochs"], asked["warmup_steps"]
optimizer = torch.optim.SGD(
    network.parameters(),
    asked["learning_rate"],
    asked["momentum"],
    nesterov=asked["nesterov"],
    fused=True,
)


def share_of_peak(step: int) -> float:
    """The learning rate: up over the first steps, then down to 0 at the last."""
    return step / warmup if step < warmup else 1 - (step - warmup) / (total - warmup)


schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share_of_peak)


def precision() -> torch.autocast:
    """Autocast, where it is asked for."""
    return torch.autocast(device.type, torch.bfloat16, enabled=asked["precision"] == "bfloat16")


def train_step(inputs: Tensor, labels: Tensor) -> Tensor:
    """One step of gradient descent."""
    with precision():
        loss = functional.cross_entropy(model(inputs), labels)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    schedule.step()
    return loss.detach()


def test_errors() -> int:
    """Test images misread."""
    network.eval()
    with torch.no_grad(), precision():
        answers = torch.cat([network(batch).argmax(1) for batch in x_test.split(1000)])
    network.train()
    return int((answers != y_test).sum())


for _ in range(asked["epochs"]):
    start = time.perf_counter()
    loss = torch.zeros((), device=device)
    for batch in torch.randperm(len(x_train), device=device)[: steps * asked["batch_size"]].view(
        steps, asked["batch_size"]
    ):
        loss += train_step(x_train[batch], y_train[batch])
    loss.item()
    seconds = time.perf_counter() - start
    errors = test_errors() if asked["evaluate"] else None
    common.report("epoch", seconds=seconds, errors=errors)
