"""How is an activation taken out of a torch module, or put into it?

Plain torch hooks: a forward hook for a module's output, a forward pre-hook for its input. A module
may take its input by position or by keyword, and give back a tensor, a tuple or a transformers
output; the activation is the first tensor of either.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from saelab.errors import ShapeError
from saelab.models.protocol import PositionEdit

__all__ = ["RowShape", "edited", "read", "watched"]

RowShape = tuple[int, int]
"""Rows and positions of the pass being run."""
Place = tuple[nn.Module, str]
Visit = Callable[[Tensor], Tensor | None]


class _Enough(BaseException):
    """Everything asked for has been read: stop the pass. No `except Exception` may swallow it."""


def read(
    places: Mapping[str, Place], shape: RowShape, run: Callable[[], object]
) -> dict[str, Tensor]:
    """Run a forward pass until every place has been seen, and return what was there.

    A module that runs several times in a pass is read the first time.

    Args:
        places: Name -> module and side.
        shape: Rows and positions of the pass.
        run: The forward pass.

    Returns:
        Name -> a copy of the activation, [row, pos, d], in the order of `places`. A place that the
        pass never reaches is missing.
    """
    seen: dict[str, Tensor] = {}

    def visitor(name: str) -> Visit:
        def visit(activation: Tensor) -> None:
            if name not in seen:
                # A copy: the model may go on to change the tensor in place.
                seen[name] = _rows(activation, shape, name).detach().clone()
            if len(seen) == len(places):
                raise _Enough

        return visit

    with ExitStack() as stack:
        for name, place in places.items():
            stack.callback(_attach(place, visitor(name)).remove)
        with suppress(_Enough):
            run()
    return {name: seen[name] for name in places if name in seen}


@contextmanager
def watched(places: Mapping[str, Place], shape: RowShape) -> Iterator[dict[str, Tensor]]:
    """Within the block, note what is at every place; the pass goes on, and gradients stay.

    A module that runs several times is read the first time. Where an edit is active too, what it
    left is read.

    Args:
        places: Name -> module and side.
        shape: Rows and positions of the pass.
    """
    seen: dict[str, Tensor] = {}

    def visitor(name: str) -> Visit:
        def visit(activation: Tensor) -> None:
            if name not in seen:
                seen[name] = _rows(activation, shape, name).clone()  # the model may change its own

        return visit

    with ExitStack() as stack:
        for name, place in places.items():
            stack.callback(_attach(place, visitor(name)).remove)
        yield seen


@contextmanager
def edited(
    places: Mapping[str, tuple[Place, Callable[[Tensor], Tensor]]],
    shape: Callable[[], RowShape],
    start: Callable[[], int] = int,
) -> Iterator[None]:
    """Within the block, replace the activation at each place by what its function returns.

    Args:
        places: Name -> (module and side, function of the activation [row, pos, d]).
        shape: Rows and positions of the pass being run.
        start: The position of its first token; beyond 0 only if every edit is a `PositionEdit`.
    """

    def visitor(name: str, edit: Callable[[Tensor], Tensor]) -> Visit:
        def visit(activation: Tensor) -> Tensor:
            before = _rows(activation, shape(), name)
            if isinstance(edit, PositionEdit):
                after = edit.from_position(before, start())
            else:
                after = edit(before)
            if not isinstance(after, Tensor) or after.shape != before.shape:
                found = list(after.shape) if isinstance(after, Tensor) else type(after).__name__
                raise ShapeError(
                    f"The edit at {name} was given an activation of shape {list(before.shape)} "
                    f"and returned {found}. Return a tensor of the same shape."
                )
            return after.to(activation).reshape(activation.shape)

        return visit

    with ExitStack() as stack:
        for name, (place, edit) in places.items():
            stack.callback(_attach(place, visitor(name, edit)).remove)
        yield


def _rows(activation: Tensor, shape: RowShape, name: str) -> Tensor:
    """The activation as [row, pos, d]: heads side by side, tokens back in their rows."""
    if activation.dim() >= 3 and activation.shape[:2] == shape:
        return activation.flatten(2)
    if activation.dim() == 2 and activation.shape[0] == shape[0] * shape[1]:
        return activation.reshape(*shape, activation.shape[1])
    raise ShapeError(
        f"{name} does not hold one vector per token: its shape is {list(activation.shape)} in a "
        f"pass of {shape[0]} rows of {shape[1]} tokens. Choose another hook point."
    )


def _attach(place: Place, visit: Visit) -> RemovableHandle:
    module, side = place
    if side == "output":
        return module.register_forward_hook(lambda _m, _a, output: _visit_output(output, visit))
    return module.register_forward_pre_hook(
        lambda _m, args, kwargs: _visit_input(args, kwargs, visit), with_kwargs=True
    )


def _visit_output(output: Any, visit: Visit) -> Any:
    if isinstance(output, Tensor):
        return visit(output)
    if isinstance(output, tuple):
        new = visit(output[0])
        return None if new is None else (new, *output[1:])
    if isinstance(output, Mapping) and output:  # a transformers output is an ordered mapping
        first = next(iter(output))
        new = visit(output[first])
        return None if new is None else type(output)(**{**output, first: new})
    raise ShapeError(
        f"A hooked module returned {type(output).__name__}, which holds no activation."
    )


def _visit_input(args: tuple, kwargs: dict[str, Any], visit: Visit) -> Any:
    if args and isinstance(args[0], Tensor):
        new = visit(args[0])
        return None if new is None else ((new, *args[1:]), kwargs)
    first = "hidden_states" if "hidden_states" in kwargs else None
    first = first or next((k for k, v in kwargs.items() if isinstance(v, Tensor)), None)
    if first is None:
        raise ShapeError("A hooked module was called without a tensor: it has no input to read.")
    new = visit(kwargs[first])
    return None if new is None else (args, {**kwargs, first: new})
