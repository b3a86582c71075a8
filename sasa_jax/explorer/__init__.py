"""One image seen through a network: a page to look at its attention, and figures of it."""

from sasa_jax.explorer.explanation import Explanation, Guess, explain
from sasa_jax.explorer.page import build_page, write_page

__all__ = ["Explanation", "Guess", "build_page", "explain", "write_page"]
