"""Amounts as people write them: tokens with up to six decimals. Everywhere else they are integer micro-tokens."""

from bflnode.consensus.genesis import MAX_SUPPLY
from bflnode.consensus.types import TOKEN, Amount

DECIMALS = 6
"""Decimals of a token: one micro-token is the least amount."""

MAX_DIGITS = len(str(MAX_SUPPLY // TOKEN))
"""Most digits before the point."""


def tokens_text(amount: Amount) -> str:
    """An amount in tokens and in micro-tokens."""
    return f"{plain_tokens(amount)} tokens ({amount} micro-tokens)"


def plain_tokens(amount: Amount) -> str:
    """An amount in tokens, with all decimals, without a unit."""
    return f"{amount // TOKEN}.{amount % TOKEN:0{DECIMALS}d}"


def parse_tokens(text: str) -> Amount:
    """Read an amount in tokens, exactly.

    Raises:
        ValueError: with what is wrong, in words for a person.
    """
    whole, point, fraction = text.partition(".")
    if not (whole + fraction).isascii() or not (whole + fraction).isdigit() or (point and not fraction):
        raise ValueError(f"{text!r} is not an amount of tokens: write one like 2 or 0.25")
    if len(fraction) > DECIMALS:
        raise ValueError(f"{text!r} has {len(fraction)} decimals: a token has only {DECIMALS}")
    if len(whole) > MAX_DIGITS:
        raise ValueError(
            f"{text[:40]!r} is more than there can be: no chain has over {plain_tokens(MAX_SUPPLY)} tokens"
        )
    return int(whole or "0") * TOKEN + int(fraction.ljust(DECIMALS, "0"))
