"""The draft head computes the formulas of docs/guide.md, and golden values that other implementations can repeat."""

import numpy as np
import pytest
import torch

from mobilemoe.model.draft import Draft

D, F, K, EPS = 64, 96, 32, 1e-5
GUESSES = [12, 1, 6, 18]  # places in the shortlist
FIRST_OF_STATE = [18.8099194, 11.3710922, -53.5693036, 55.549937]
LARGEST_LOGITS = [9.0184203, 5.95959701, 7.7066083, 7.31371561]


def pattern(rows: int, columns: int, seed: int) -> np.ndarray:
    """Numbers in -11/23 .. 11/23 that any language makes alike."""
    row, column = np.mgrid[:rows, :columns]
    return ((row * 31 + column * 17 + row * column * 5 + seed * 7) % 23 - 11) / 23


@pytest.fixture
def weights() -> dict[str, np.ndarray]:
    shapes = {
        "first_proj": (D, 3 * D),
        "in_proj": (D, 2 * D),
        "gate_proj": (F, D),
        "up_proj": (F, D),
        "down_proj": (D, F),
        "head": (K, D),
    }
    return {name: pattern(*shape, seed) for seed, (name, shape) in enumerate(shapes.items())}


def draft(weights: dict[str, np.ndarray]) -> Draft:
    made = Draft(D, F, K, EPS, layers=(0,)).double()
    for name, w in weights.items():
        made.get_submodule(name).weight.data = torch.from_numpy(w)
    made.shortlist_K.copy_(torch.arange(K) * 3 + 1)
    return made


def norm(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x * x).mean() + EPS)


def obvious_step(w: dict[str, np.ndarray], states: list[np.ndarray], embedding: np.ndarray) -> tuple:
    """`states` are the model's, those of the last norm and of a layer, or the head's own."""
    inputs = np.concatenate([norm(x) for x in (*states, embedding)])
    x = w["first_proj" if len(states) == 2 else "in_proj"] @ inputs
    gate = w["gate_proj"] @ norm(x)
    x = x + w["down_proj"] @ (gate / (1 + np.exp(-gate)) * (w["up_proj"] @ norm(x)))
    return x, w["head"] @ norm(x)


def chain(w: dict[str, np.ndarray], step, length: int = 4) -> list[tuple[np.ndarray, np.ndarray]]:
    """Some steps, each from the state that the one before gave."""
    states, made = [pattern(1, D, 11)[0], pattern(1, D, 12)[0]], []
    for at in range(length):
        state, logits = step(w, states, pattern(1, D, 20 + at)[0])
        made.append((state, logits))
        states = [state]
    return made


def torch_step(w: dict[str, np.ndarray], states: list[np.ndarray], embedding: np.ndarray) -> tuple:
    head = draft(w)
    step = head.begin if len(states) == 2 else head
    with torch.no_grad():
        x_D, logits_K = step(torch.from_numpy(np.concatenate(states)), torch.from_numpy(embedding))
    return x_D.numpy(), logits_K.numpy()


def test_it_computes_the_formulas_step_after_step(weights):
    for (state, logits), (want_state, want_logits) in zip(
        chain(weights, torch_step), chain(weights, obvious_step), strict=True
    ):
        np.testing.assert_allclose(state, want_state, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(logits, want_logits, rtol=1e-9, atol=1e-9)


def test_the_golden_values_of_four_steps(weights):
    steps = chain(weights, torch_step)
    assert [int(logits.argmax()) for _, logits in steps] == GUESSES
    np.testing.assert_allclose([state[0] for state, _ in steps], FIRST_OF_STATE, rtol=1e-6)
    np.testing.assert_allclose([logits.max() for _, logits in steps], LARGEST_LOGITS, rtol=1e-6)


def test_many_places_at_once_are_each_alone(weights):
    head, source = draft(weights), torch.Generator().manual_seed(1)
    state_BTD, embedding_BTD = torch.randn(2, 2, 3, D, generator=source, dtype=torch.float64)
    together = head(state_BTD, embedding_BTD)
    alone = head(state_BTD[1, 2], embedding_BTD[1, 2])
    for got, want in zip(together, alone, strict=True):
        torch.testing.assert_close(got[1, 2], want)
