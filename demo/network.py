"""A small network that forecasts a year's sunspot number from the 22 years before it; numpy only."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import ckptstore

WINDOW = 22  # years, two cycles of the sun
SCALE = 100.0
LAYERS = {"hidden1": (WINDOW, 128), "hidden2": (128, 64), "output": (64, 1)}

_LEARNING_RATE = 1e-3
_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8


def load_years() -> tuple[np.ndarray, np.ndarray]:
    """Return inputs, shape (n, WINDOW), and the numbers that follow, shape (n, 1); divided by SCALE."""
    table = np.loadtxt(Path(__file__).with_name("sunspots.csv"), delimiter=",")
    numbers = (table[:, 1] / SCALE).astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(numbers, WINDOW)
    return np.ascontiguousarray(windows[:-1]), numbers[WINDOW:, None]


def new_values() -> dict[str, np.ndarray]:
    """Return everything that a training job has to remember: weights, the state of Adam, the step."""
    random = np.random.default_rng(1609)
    values: dict[str, np.ndarray] = {}
    for layer, (width_in, width_out) in LAYERS.items():
        bound = np.sqrt(6 / (width_in + width_out))
        values[f"{layer}/w"] = random.uniform(-bound, bound, (width_in, width_out)).astype(np.float32)
        values[f"{layer}/b"] = np.zeros(width_out, np.float32)
    for name in list(values):
        values[f"{name}/adam_m"] = np.zeros_like(values[name])
        values[f"{name}/adam_v"] = np.zeros_like(values[name])
    values["global_step"] = np.array(0, np.int64)
    return values


def forecast(values: dict[str, np.ndarray], inputs: np.ndarray) -> list[np.ndarray]:
    """Return the activations of every layer; the last are the forecasts."""
    activations = [inputs]
    for layer in LAYERS:
        total = activations[-1] @ values[f"{layer}/w"] + values[f"{layer}/b"]
        activations.append(total if layer == "output" else np.tanh(total))
    return activations


def describe(values: dict[str, np.ndarray]) -> ckptstore.Graph:
    """Return the network as TensorFlow would run it: sunspot numbers in, that of the next year out."""
    builder = ckptstore.GraphBuilder()
    years = builder.placeholder("years", "float32", (None, WINDOW))
    scale = builder.constant("scale", np.float32(SCALE))
    tensor = builder.operation("scaled", "RealDiv", [years, scale])
    for layer in LAYERS:
        w = builder.variable(f"{layer}/w", "float32", values[f"{layer}/w"].shape)
        b = builder.variable(f"{layer}/b", "float32", values[f"{layer}/b"].shape)
        product = builder.operation(f"{layer}/product", "MatMul", [tensor, w])
        tensor = builder.operation(f"{layer}/total", "AddV2", [product, b])
        if layer != "output":
            tensor = builder.operation(f"{layer}/tanh", "Tanh", [tensor])
    builder.operation("forecast", "Mul", [tensor, scale])
    for name, value in values.items():
        if "adam" in name or name == "global_step":
            builder.variable(name, value.dtype, value.shape, trainable=False)
    return builder.build()


def train_step(values: dict[str, np.ndarray], inputs: np.ndarray, targets: np.ndarray) -> float:
    """Change `values` in place by one step of Adam; return the loss before it, the mean squared error."""
    activations = forecast(values, inputs)
    error = activations[-1] - targets
    values["global_step"] += 1
    step = int(values["global_step"])
    rate = _LEARNING_RATE * np.sqrt(1 - _BETA2**step) / (1 - _BETA1**step)
    slope = 2 * error / len(targets)
    for position, layer in reversed(list(enumerate(LAYERS))):
        gradients = {f"{layer}/w": activations[position].T @ slope, f"{layer}/b": slope.sum(axis=0)}
        if position:
            # Before the weights change. tanh'(x) = 1 - tanh(x)², from the activation itself.
            slope = (slope @ values[f"{layer}/w"].T) * (1 - activations[position] ** 2)
        for name, gradient in gradients.items():
            mean, square = values[f"{name}/adam_m"], values[f"{name}/adam_v"]
            mean += (1 - _BETA1) * (gradient - mean)
            square += (1 - _BETA2) * (gradient**2 - square)
            values[name] -= (rate * mean / (np.sqrt(square) + _EPSILON)).astype(np.float32)
    return float(np.mean(error**2))
