"""Types of the numbers that commands take as options: in range, or refused in a sentence."""

from __future__ import annotations

import argparse


def seed(text: str) -> int:
    """Return a seed that torch.manual_seed takes."""
    number = _integer(text)
    if not -(2**63) <= number < 2**64:
        raise argparse.ArgumentTypeError(f"a seed must be from -2^63 to 2^64 - 1, got {number}")
    return number


def positive(text: str) -> int:
    """Return a whole number, 1 or more, that fits into 64 bits."""
    number = _integer(text)
    if not 1 <= number < 2**63:
        raise argparse.ArgumentTypeError(f"it must be from 1 to 2^63 - 1, got {number}")
    return number


def seconds(text: str) -> float:
    """Return a time; "inf" is no limit."""
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not number >= 0:
        raise argparse.ArgumentTypeError(
            f"a number of seconds, 0 or more, is wanted, got {text!r}; inf is no limit"
        )
    return number


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
