"""How a notebook differs from a process of our own: it stays, and it shows what is raised."""

import sys


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    if "ipykernel" not in sys.modules:
        return False
    from IPython.core.getipython import get_ipython

    return hasattr(get_ipython(), "kernel")


class OneLine(BaseException):
    """What a notebook shows in a line, without the code that it comes from."""

    def _render_traceback_(self) -> list[str]:
        return [f"mnist-jax: {self}"]
