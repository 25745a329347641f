"""The router's choice is defined for every input: best first, the lowest index of equal scores, NaN last."""

import torch

from mobilemoe.model.router import choose


def test_choice_is_best_first_and_ties_go_to_the_lowest_index():
    scores_NE = torch.tensor(
        [[0.5, 0.5, 0.5, 0.5, 0.5], [0.1, 0.9, 0.1, 0.9, 0.1], [0.3, 0.2, 0.3, 0.4, 0.3], [0.0, -0.0, 0.0, -0.0, 0.0]]
    )
    assert choose(scores_NE, 3).tolist() == [[0, 1, 2], [1, 3, 0], [3, 0, 2], [0, 1, 2]]


def test_many_ties_among_many_experts_go_to_the_lowest_index():
    scores_NE = torch.randint(0, 4, (200, 60), generator=torch.Generator().manual_seed(0)).float()
    for row, chosen in zip(scores_NE.tolist(), choose(scores_NE, 7).tolist(), strict=True):
        assert chosen == sorted(range(60), key=lambda e, row=row: (-row[e], e))[:7]


def test_nan_scores_rank_last():
    nan = torch.nan
    scores_NE = torch.tensor([[nan, 0.1, nan, 0.3], [nan, nan, nan, 0.3], [nan] * 4, [0.2, nan, 0.1, 0.3]])
    assert choose(scores_NE, 2).tolist() == [[3, 1], [3, 0], [0, 1], [3, 0]]
    assert choose(scores_NE, 4).sort(dim=-1).values.tolist() == [[0, 1, 2, 3]] * 4
