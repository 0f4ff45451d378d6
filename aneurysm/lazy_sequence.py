"""LazySequence: values that are made each time they are asked for, so that millions of them take no memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar, overload

from numpy.typing import NDArray

_Value = TypeVar("_Value", covariant=True)


class LazySequence(Sequence[_Value], Generic[_Value]):
    """``make`` of each of ``indices``, in their order; a slice is a list."""

    def __init__(self, make: Callable[[int], _Value], indices: Sequence[int] | NDArray[Any]) -> None:
        self._make, self._indices = make, indices

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> _Value: ...

    @overload
    def __getitem__(self, index: slice) -> list[_Value]: ...

    def __getitem__(self, index: int | slice) -> _Value | list[_Value]:
        if isinstance(index, slice):
            return [self._make(int(i)) for i in self._indices[index]]
        return self._make(int(self._indices[index]))
