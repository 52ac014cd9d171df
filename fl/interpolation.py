"""Where between what it trained from and what it trained a client predicts after training. No torch.

Training pulls a model towards a client's own few samples; what it started from knows more of everybody. Between the two
it often predicts better than the trained model (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models", eq. 1).
The weights are made by `networks.interpolated`. Nothing that is sent or kept changes.
"""

INTERPOLATION = 0.5
"""What clients of the rule `prior-rows` go towards."""


def share_of_training(interpolation: float, number: int) -> float:
    """`interpolation + (1 - interpolation) / r` in learning round r: 1 in the first, whose start knows nothing yet.

    Args:
        interpolation: what the share goes towards, 0 to 1; with 1 it is 1 in every round: the trained model.
        number: of the learning round, from 1.
    """
    return interpolation + (1 - interpolation) / number
