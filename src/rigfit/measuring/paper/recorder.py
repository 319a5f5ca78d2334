"""Write down every allocation and release of tensors without storage, with where it happened."""

from __future__ import annotations

import bisect
import itertools
import weakref
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_leaves

from rigfit.measuring.paper import cudnn_rnn
from rigfit.measuring.paper.accumulation import adds_in_place, references_when_alone
from rigfit.measuring.paper.cost import Cost, cost_of, is_look
from rigfit.measuring.paper.memo import Memo
from rigfit.measuring.paper.onednn_rnn import with_workspace
from rigfit.measuring.paper.refused import refuse_mixed_types
from rigfit.measuring.paper.scratch import hidden_bytes, unreduced_bytes
from rigfit.measuring.paper.worst_case import depends_on_values, worst_case
from rigfit.planning.trace import Call, Kind, Line, Mark, Phase, Storage, Trace

_NO_NUMBER = (1 << 63) - 1  # nodes that only store gradients are numbered beyond every other


class Recorder:
    """What happened so far: storages, the order of allocations and releases, operators, and the parts of the step.

    Args:
        device: Where the tensors are said to be.
        kind: What they stand for: `cuda` or `cpu`.
    """

    def __init__(self, device: torch.device, *, kind: str) -> None:
        self.device = device
        self.kind = kind
        self.sizes: list[int] = []
        self.kinds: list[Kind] = []
        self.phases: list[Phase] = []
        self.modules: list[str] = []
        self.operators: list[str] = []
        self.order: list[int] = []
        self.calls: list[Call] = []
        self.marks: list[Mark] = []
        self.notes: list[str] = []
        self.step = 0
        self.micro_step = 0
        self.phase = Phase.BUILD
        self._prices: dict[tuple[Any, ...] | None, tuple[Cost | None, int, int]] = {}
        self._numbers: dict[int, int] = {}
        self._references: dict[int, weakref.ref[Any]] = {}
        self._stack: list[str] = [""]
        self._turns: list[tuple[int, str]] = [(0, "")]  # (number of the next autograd node, module it will belong to)
        self.enter(Phase.BUILD)

    # --- the parts of a step

    def enter(self, phase: Phase) -> None:
        """Begin a part of the step."""
        self.phase = phase
        self.marks.append(Mark(len(self.order), self.step, self.micro_step, phase))

    def assume(self, operator: str, text: str) -> None:
        """Note what was assumed where an operator depends on values."""
        called = "item()" if "_local_scalar_dense" in operator else operator  # torch's name for it says little
        where = f" in {self._stack[-1]}" if self._stack[-1] else ""
        self.tell(f"{called}{where} depends on values: {text}")

    def tell(self, note: str) -> None:
        """Add a note to the plan, once."""
        if note not in self.notes:
            self.notes.append(note)

    # --- modules

    def watch(self, model: nn.Module) -> None:
        """Follow which module of `model` is running."""
        for name, module in model.named_modules():
            module.register_forward_pre_hook(self._entering(name))
            module.register_forward_hook(self._leaving, always_call=True)

    def _entering(self, name: str) -> Any:
        def enter(_module: nn.Module, _inputs: object) -> None:
            self._stack.append(name)
            self._turn()

        return enter

    def _leaving(self, _module: nn.Module, _inputs: object, _output: object) -> None:
        if len(self._stack) > 1:
            self._stack.pop()
        self._turn()

    def _turn(self) -> None:
        if self.phase is Phase.FORWARD:
            self._turns.append((torch._C._autograd._get_sequence_nr(), self._stack[-1]))

    def module(self) -> str:
        """Return the module inside which the present operator runs; in backward, the one whose gradient it makes."""
        node = torch._C._current_autograd_node()
        if node is None or len(self._stack) > 1:
            return self._stack[-1]
        number = node._sequence_nr()
        if number >= _NO_NUMBER:
            return ""
        index = bisect.bisect_right(self._turns, number, key=lambda turn: turn[0]) - 1
        return self._turns[index][1]

    # --- storages

    def saw(
        self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any, alike: tuple[Any, ...] | None
    ) -> None:
        """Note what one operator computed and allocated; calls with the same `alike`, if any, cost the same."""
        if self.phase is Phase.FORWARD and torch._C._current_autograd_node() is not None:
            self.enter(Phase.BACKWARD)
        leaves = (out,) if isinstance(out, Tensor) else tree_leaves(out)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.device.type == self.device.type]
        name = _name_of(func)
        cost, unreduced, hidden = self._price(func, args, kwargs, out, alike)
        module = self.module() if cost is not None or tensors else ""
        kind = Kind.INPUT if self._brings_input(args, tensors) else Kind.TEMPORARY
        for tensor in tensors:
            self.note(tensor, name, module, kind, at_least=unreduced)
        if cost is not None:
            self._call(name, module, cost)
        if hidden:
            number = self._add(hidden, Kind.WORKSPACE, module, name)
            self.order.append(~number)

    def _price(
        self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any, alike: tuple[Any, ...] | None
    ) -> tuple[Cost | None, int, int]:
        """Return what a call costs, the bytes behind a reduced loss, and those that its kernel hides."""
        if is_look(func):
            return None, 0, 0
        if alike in self._prices:
            return self._prices[alike]
        found = (
            cost_of(func, args, kwargs, out, self.device),
            unreduced_bytes(func, args, kwargs),
            hidden_bytes(func, args, kwargs, self.kind),
        )
        if alike is not None:
            self._prices[alike] = found
        return found

    def _call(self, operator: str, module: str, cost: Cost) -> None:
        family, flops, moved, sizes, details = cost
        self.calls.append(
            Call(
                operator,
                family,
                self.phase,
                module,
                Line(flops, 0),
                Line(moved, 0),
                (Line(sizes[0], 0), Line(sizes[1], 0), Line(sizes[2], 0)),
                len(self.order),
                details,
            )
        )

    def _brings_input(self, args: tuple[Any, ...], tensors: list[Tensor]) -> bool:
        """Return whether an operator brings a part of the batch from the CPU to the device."""
        is_outside = self.phase is Phase.FORWARD and len(self._stack) == 1
        is_moved = bool(tensors and args) and isinstance(args[0], Tensor) and args[0].device != tensors[0].device
        return is_outside and is_moved

    def note(
        self, tensor: Tensor, operator: str, module: str = "", kind: Kind = Kind.TEMPORARY, *, at_least: int = 0
    ) -> int:
        """Note the storage of `tensor` unless it is known already; return its number."""
        storage = tensor.untyped_storage()
        key, num_bytes = storage._cdata, int(storage.nbytes())
        number = self._numbers.get(key)
        if number is None:
            number = self._add(max(at_least, num_bytes), kind, module, operator)
            self._follow(storage, number)
        elif num_bytes > self.sizes[number]:  # grown by `resize_` or `out=`: torch copies, then releases what was
            former, number = number, self._add(num_bytes, self.kinds[number], module or self.modules[number], operator)
            self.order.append(~former)
            self._follow(storage, number)
        return number

    def _follow(self, storage: torch.UntypedStorage, number: int) -> None:
        """Write down the release of a storage when it comes."""
        key = storage._cdata
        self._numbers[key] = number

        def released(_reference: object) -> None:
            if self._numbers.get(key) == number:
                del self._numbers[key], self._references[key]
            self.order.append(~number)

        self._references[key] = weakref.ref(storage, released)

    def _add(self, num_bytes: int, kind: Kind, module: str, operator: str) -> int:
        number = len(self.sizes)
        self.sizes.append(num_bytes)
        self.kinds.append(kind)
        self.phases.append(self.phase)
        self.modules.append(module)
        self.operators.append(operator)
        self.order.append(number)
        return number

    def hold(self, named: Iterable[tuple[str, Tensor | None]], kind: Kind) -> None:
        """Say what storages hold, noting those that are new. The name is that of the parameter, or empty."""
        for name, tensor in named:
            if tensor is None or tensor.device.type != self.device.type:
                continue
            module = name.rpartition(".")[0]
            number = self.note(tensor, kind.value, module, kind)
            self.kinds[number] = kind
            self.modules[number] = module or self.modules[number]

    def trace(
        self,
        *,
        capability: tuple[int, int],
        micro_batch_size: int,
        blocks: tuple[str, ...],
        method: str,
        seconds: float,
    ) -> Trace:
        """Return what was written down, as the trace of one micro-batch size."""
        return Trace(
            device_kind=self.kind,
            capability=capability,
            micro_batch_sizes=(micro_batch_size,),
            storages=self.storages(),
            order=self.settled_order(),
            calls=tuple(self.calls),
            marks=tuple(self.marks),
            blocks=blocks,
            method=method,
            notes=tuple(self.notes),
            seconds=seconds,
        )

    def storages(self) -> tuple[Storage, ...]:
        """Return all storages; what was made in forward and is needed in backward is named an activation."""
        kept = self._kept_for_backward()
        return tuple(
            Storage(
                Line(size, 0.0),
                Kind.ACTIVATION if kind is Kind.TEMPORARY and number in kept else kind,
                phase,
                module,
                operator,
            )
            for number, (size, kind, phase, module, operator) in enumerate(
                zip(self.sizes, self.kinds, self.phases, self.modules, self.operators, strict=True)
            )
        )

    def settled_order(self) -> tuple[int, ...]:
        """Return the order with releases that follow each other sorted.

        Casts of weights leave autocast's cache in the order of their addresses, another one at every run.
        """
        order: list[int] = []
        for is_release, group in itertools.groupby(self.order, key=lambda n: n < 0):
            run = list(group)
            order += sorted(run, reverse=True) if is_release else run
        return tuple(order)

    def _kept_for_backward(self) -> set[int]:
        """Return storages made in a forward part and still alive when its backward began."""
        kept: set[int] = set()
        alive: set[int] = set()
        begins = iter([mark for mark in self.marks if mark.phase is Phase.BACKWARD])
        following = next(begins, None)
        for position, n in enumerate(self.order):
            while following is not None and following.position <= position:
                kept |= {m for m in alive if self.phases[m] is Phase.FORWARD}
                following = next(begins, None)
            if n >= 0:
                alive.add(n)
            else:
                alive.discard(~n)
        return kept


@cache
def _name_of(func: Any) -> str:
    return str(func.overloadpacket) if hasattr(func, "overloadpacket") else str(func)


@cache
def _short_name_of(func: Any) -> str:
    return str(func._schema.name.split("::")[1]) if hasattr(func, "_schema") else ""


class LeftoverError(Exception):
    """A task used a tensor that it had kept from an earlier reading."""


class PaperMode(FakeTensorMode):
    """Tensors without storage whose every operator is told to a recorder.

    With `refuses_leftovers`, a tensor without storage that is of another reading raises LeftoverError.
    """

    def __init__(self, recorder: Recorder, *, refuses_leftovers: bool = False) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.recorder = recorder
        self.refuses_leftovers = refuses_leftovers
        self._depth = 0
        self._is_answering = False
        self._alone = references_when_alone()
        self._memo = Memo(self)
        # Torch's cache is one for all readings, and forgets that an operator may return one tensor twice (the gradients
        # of an LSTM's biases): a second reading would differ from the first.
        self.cache_enabled = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        if func is torch.ops.prim.device.default:  # asked several times per operator
            return args[0].fake_device
        if self._depth == 0 and adds_in_place(func, args, kwargs or {}, self._alone):
            func = torch.ops.aten.add_.Tensor
        self._depth += 1
        alike: tuple[Any, ...] | None = None
        try:
            assumed = None if self._is_answering else self._assume(func, args, kwargs or {})
            if assumed:
                out = assumed[0]
            else:
                out, alike = self._run(func, types, args, kwargs or {})
        finally:
            self._depth -= 1
        # Parts of an operator that torch takes apart are not seen by themselves: a GPU runs them as one kernel.
        if self._depth == 0:
            self.recorder.saw(func, args, kwargs or {}, out, alike)
        return out

    def _run(self, func: Any, types: Any, args: Any, kwargs: Mapping[str, Any]) -> tuple[Any, tuple[Any, ...] | None]:
        """Return what an operator returns, and what it has in common with calls that return the same."""
        refuse_mixed_types(func, args)
        known, key = self._memo.recall(func, args, kwargs)
        if known is not None:  # then every tensor is of this reading
            return known[0], key
        if self.refuses_leftovers and self._depth == 1 and self._is_leftover((args, kwargs)):
            raise LeftoverError(str(func))
        name = _short_name_of(func)
        out = cudnn_rnn.answer(name, args)
        if out is not None:
            self.recorder.tell(cudnn_rnn.ASSUMED)
            return out, None
        out = with_workspace(name, args, super().__torch_dispatch__(func, types, args, kwargs))
        if key is not None:
            self._memo.learn(key, args, kwargs, out)
        return out, key

    def _is_leftover(self, given: Any) -> bool:
        return any(isinstance(leaf, FakeTensor) and leaf.fake_mode is not self for leaf in tree_leaves(given))

    def _assume(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, str] | None:
        """Return the worst case of an operator that depends on values, noting what was assumed."""
        if not depends_on_values(func):
            return None
        self._is_answering = True
        try:
            with self:
                found = worst_case(func, args, kwargs)
        finally:
            self._is_answering = False
        if found is not None and found[1]:
            self.recorder.assume(str(func), found[1])
        return found


# Torch wraps the method of every mode so that its compiler leaves it alone, and loads the compiler for that; nothing is
# compiled here, and a mode is asked about 100,000 times a step.
_plain = getattr(PaperMode.__torch_dispatch__, "__wrapped__", PaperMode.__torch_dispatch__)
PaperMode.__torch_dispatch__ = _plain  # type: ignore[method-assign]
