"""TensorFlow itself, quietly, in graph mode where a test asks for it."""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pytest
import tensorflow as tf

tf1 = tf.compat.v1
tf1.logging.set_verbosity(tf1.logging.ERROR)


@pytest.fixture(autouse=True)
def _fresh_graph():
    """Each test gets a default graph of its own."""
    tf1.reset_default_graph()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20260101)
