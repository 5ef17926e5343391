"""The calls of denoiser and decoder as CUDA graphs: the kernels of a call are recorded once and then started together.

A GPU that has done a kernel before the CPU has started the next one waits; with a small denoiser, or adapters, whose products are small and many, it waits most of
the time. A recorded call is the same kernels on the same numbers in the same order, so nothing changes but the time.

Calls of one kind (shapes, types, precision, with or without a gradient) share a recording. The first ones are made as usual, as libraries load and
choose kernels then; so calls that hardly come again are never recorded.

Memory: what its kernels write, a recording keeps for itself, where usual calls lend it to each other. So all recordings of a process write on the same memory, and
while the gradient of an answer is awaited no other one may run; a weight's gradient is added up where it lies; all of a process is done on one stream, as cuBLAS
has scratch memory for each; and the first calls of a kind with a gradient, which take the most, are not made beside recordings.

DDP gathers what autograd brings, so it is given copies of the gradients: of all weights at once, at the end of a call, and no backward pass is left behind which
to hide their exchange.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from train.determinism import only_deterministic

USUAL_CALLS = 2
"""Of a kind, before it is recorded."""


class Recording(Protocol):
    """A call of one kind. Its inputs and outputs lie where they lay when it was recorded."""

    inputs: Sequence[Tensor]
    output: Tensor
    slope: Tensor | None
    """Of the output, which `backward` reads; None without a gradient."""
    reached: Sequence[bool]
    """Of the weights, those that have a gradient."""

    def forward(self) -> None:
        """Write `output` from `inputs`."""

    def backward(self) -> None:
        """Add to `grad` of the weights that are `reached`, from `slope`, and from what `forward` has left."""


class CudaRecording:
    """Of kernels of a GPU."""

    def __init__(
        self, call: Callable[..., Tensor], inputs: Sequence[Tensor], weights: Sequence[Tensor], pool: Any
    ) -> None:
        """Record, which computes nothing. On a stream that is not the default one (`leave_default_stream`).

        Args:
            call: what is recorded, with a gradient where gradients are on.
            inputs: of the kind that is to come.
            weights: whose gradients are added to their `grad`.
            pool: of memory, in which recordings may write on each other.
        """
        self.inputs: Sequence[Tensor] = [tensor.clone() for tensor in inputs]
        self.slope: Tensor | None = None
        self.reached: Sequence[bool] = ()
        self._forward, self._backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        # weights as autocast has just cast them are those of now
        torch.clear_autocast_cache()
        with self._recorded(self._forward, pool):
            output = call(*self.inputs)
        if output.requires_grad:
            self.slope = torch.empty_like(output)
            device = output.device
            with (
                torch.autocast(device.type, enabled=False),
                only_deterministic(device),
                self._recorded(self._backward, pool),
            ):
                self.reached = add_gradients(output, self.slope, weights)
        torch.clear_autocast_cache()
        self.output = output.detach()

    @staticmethod
    def _recorded(graph: torch.cuda.CUDAGraph, pool: Any) -> torch.cuda.graph:
        # of this thread's calls: NCCL has one that asks how far its work is
        stream = torch.cuda.current_stream()
        return torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local")

    def forward(self) -> None:
        """See `Recording`."""
        self._forward.replay()

    def backward(self) -> None:
        """See `Recording`."""
        self._backward.replay()


def add_gradients(output: Tensor, slope: Tensor, weights: Sequence[Tensor]) -> list[bool]:
    """Add the gradients of an output to the weights' `grad`, which is there.

    Returns:
        which of the weights have one.
    """
    reached = [False] * len(weights)
    with _told(weights, reached):
        torch.autograd.backward(output, slope, inputs=list(weights))
    return reached


@contextmanager
def _told(weights: Sequence[Tensor], reached: list[bool]) -> Iterator[None]:
    """While its gradient is added to a weight, its place in `reached` is set."""

    def at(place: int) -> Callable[[Tensor], None]:
        return lambda _: reached.__setitem__(place, True)

    hooks = [weight.register_post_accumulate_grad_hook(at(place)) for place, weight in enumerate(weights)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class Recordings:
    """All of a process; one runs at a time, as they share memory."""

    def __init__(self, recording: Callable[..., Recording] = CudaRecording) -> None:
        """None yet.

        Args:
            recording: what makes and holds one.
        """
        self.made: dict[Kind, tuple[Recording, TreeSpec]] = {}
        """With the form of the answer."""
        self.met: Counter[Kind] = Counter()
        self._recording = recording
        self._pool: Any = None
        self._asked: weakref.ref[_Asked] | None = None

    def record(
        self, call: Callable[..., Tensor], inputs: Sequence[Tensor], weights: Sequence[Tensor]
    ) -> Recording:
        """One more."""
        if self._pool is None and torch.cuda.is_available():
            self._pool = torch.cuda.graph_pool_handle()
        return self._recording(call, inputs, weights, self._pool)

    def give_way(self) -> None:
        """Leave all memory to usual calls; what comes again is recorded again."""
        for kind in self.made:
            kind.recorder.gradients.leave_place()
        self.made.clear()
        self._pool = None
        torch.cuda.empty_cache()

    def keep_for(self, asked: _Asked) -> None:
        """Have nothing written where it is needed for that call's gradient."""
        self._asked = weakref.ref(asked)

    @property
    def awaited(self) -> bool:
        """Whether an answer is there whose gradient may still be asked for."""
        asked = None if self._asked is None else self._asked()
        return asked is not None and not asked.answered


class Gradients:
    """Of the weights: where recordings add them up, which is the same memory each time."""

    def __init__(self, weights: Sequence[Tensor], copied: bool) -> None:
        """Of these weights.

        Args:
            weights: that are trained.
            copied: whether autograd is to be given them, which then adds them up itself.
        """
        self.weights, self.copied = weights, copied
        # recordings know them by other names for the same memory: what DDP has hung to a weight is not to be recorded
        self.aliases = [weight.detach().requires_grad_() for weight in weights]

    def find_place(self) -> None:
        """Give each weight's alias a `grad` that stays: that of the weight where it has one that nobody else writes on."""
        for weight, alias in zip(self.weights, self.aliases, strict=True):
            if alias.grad is None:
                own = None if self.copied else weight.grad
                alias.grad = torch.zeros_like(weight) if own is None else own

    def leave_place(self) -> None:
        """Keep none, as no recording is there."""
        for alias in self.aliases:
            alias.grad = None

    def add(self, recording: Recording) -> Sequence[Tensor | None]:
        """Have a recording add to them: to the weights' own `grad`, unless they are copied.

        Returns:
            what autograd is to add, None where that is done.
        """
        pairs = [
            (weight, alias.grad)
            for weight, alias, reached in zip(self.weights, self.aliases, recording.reached, strict=True)
            if reached and alias.grad is not None
        ]
        fresh = [kept for weight, kept in pairs if self.copied or weight.grad is None]
        if fresh:
            torch._foreach_zero_(fresh)
        if self.copied:
            recording.backward()
            # a weight's first gradient is kept, not copied, and the next one is written where this one was
            copies = iter(torch._foreach_mul([kept for _, kept in pairs], 1.0))
            return [next(copies) if reached else None for reached in recording.reached]
        for weight, kept in pairs:
            if weight.grad is not None and weight.grad is not kept:
                kept.copy_(weight.grad)
            weight.grad = kept
        recording.backward()
        return [None] * len(self.weights)


class Recorder:
    """In place of a module's `forward`: its calls, recorded."""

    def __init__(
        self, module: nn.Module, recordings: Recordings, with_gradients: bool = True, copied: bool = False
    ) -> None:
        """Stand in for it.

        Args:
            module: whose `forward` this is to be. It answers with one tensor, by itself or in a tuple.
            recordings: where they are kept, also those of other modules.
            with_gradients: whether calls with a gradient are recorded too.
            copied: see `Gradients`.
        """
        self.module, self.recordings, self.with_gradients = module, recordings, with_gradients
        self.usual: Callable[..., Any] = module.forward
        weights = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
        self.names, self.gradients = list(weights), Gradients(list(weights.values()), copied)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """The module's answer: recorded, but for the first calls of a kind, and those that a recording cannot make.

        It cannot hand a gradient to an input, nor answer before the gradient of the last answer has been taken or given up.
        """
        leaves, form = tree_flatten((arguments, options))
        inputs = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        with_gradient, recordings = torch.is_grad_enabled(), self.recordings
        if recordings.awaited or (with_gradient and not self._can_record_a_gradient(inputs)):
            return self.usual(*arguments, **options)
        kind = Kind.of(self, leaves, form, with_gradient)
        if kind not in recordings.made:
            recordings.met[kind] += 1
            if recordings.met[kind] <= USUAL_CALLS:
                if with_gradient:
                    recordings.give_way()
                return self.usual(*arguments, **options)
            recordings.made[kind] = self._record(leaves, form, inputs)
        recording, form = recordings.made[kind]
        torch._foreach_copy_(list(recording.inputs), inputs)
        if with_gradient:
            asked = _Asked(recording, self.gradients)
            recordings.keep_for(asked)
            answer: Tensor = _Replayed.apply(asked, *self.gradients.weights)
        else:
            recording.forward()
            answer = recording.output.clone()
        return tree_unflatten([answer], form)

    def _can_record_a_gradient(self, inputs: Sequence[Tensor]) -> bool:
        """Whether it is to, and no input wants one."""
        return self.with_gradients and not any(tensor.requires_grad for tensor in inputs)

    def _record(
        self, leaves: Sequence[Any], form: TreeSpec, inputs: Sequence[Tensor]
    ) -> tuple[Recording, TreeSpec]:
        aliases = self.gradients.aliases
        weights = dict(zip(self.names, aliases, strict=True))
        if torch.is_grad_enabled():
            self.gradients.find_place()
        forms: list[TreeSpec] = []

        def call(*tensors: Tensor) -> Tensor:
            given = iter(tensors)
            filled = [next(given) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            arguments, options = tree_unflatten(filled, form)
            recorder, self.module.forward = self.module.forward, self.usual
            try:
                answer = functional_call(self.module, weights, arguments, options)
            finally:
                self.module.forward = recorder
            (tensor,), found = tree_flatten(answer)
            forms.append(found)
            assert isinstance(tensor, Tensor)
            return tensor

        return self.recordings.record(call, inputs, aliases), forms[0]


class _Asked:
    """A recorded call with a gradient; gone when nobody can ask for that any more."""

    def __init__(self, recording: Recording, gradients: Gradients) -> None:
        self.recording, self.gradients = recording, gradients
        self.versions = [weight._version for weight in gradients.weights]
        self.answered = False

    def refuse_stale(self) -> None:
        """Refuse a gradient that the recording no longer has, as autograd does for calls that are not recorded.

        Raises:
            RuntimeError: where it was taken before, or weights have changed since.
        """
        if self.answered:
            raise RuntimeError(
                "the gradient of a recorded call was taken twice: its recording may hold another call by now"
            )
        if [weight._version for weight in self.gradients.weights] != self.versions:
            raise RuntimeError(
                "weights have changed between a recorded call and its gradient, which would be that of neither"
            )


class _Replayed(torch.autograd.Function):
    """A recording as a function of the weights."""

    @staticmethod
    def forward(ctx: Any, asked: _Asked, *_weights: Tensor) -> Tensor:
        ctx.asked = asked
        asked.recording.forward()
        return asked.recording.output.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        ctx.asked.refuse_stale()
        recording = ctx.asked.recording
        recording.slope.copy_(slope)
        found = ctx.asked.gradients.add(recording)
        ctx.asked.answered = True
        return (None, *found)


class Kind(NamedTuple):
    """What calls have in common that one recording serves."""

    recorder: Recorder
    inputs: tuple[Any, ...]
    """Shape, strides and type of tensors, and other inputs as they are."""
    form: str
    with_gradient: bool
    in_inference: bool
    autocast: Any
    tf32: tuple[bool, bool]

    @classmethod
    def of(cls, recorder: Recorder, leaves: Sequence[Any], form: TreeSpec, with_gradient: bool) -> Kind:
        """That of a call which is made now."""
        return cls(
            recorder,
            tuple(
                (leaf.shape, leaf.stride(), leaf.dtype) if isinstance(leaf, Tensor) else repr(leaf)
                for leaf in leaves
            ),
            str(form),
            with_gradient,
            torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda"),
            (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32),
        )


def check_device(device: torch.device) -> None:
    """Refuse a device that has no CUDA graphs.

    Raises:
        ValueError: naming the field.
    """
    if device.type != "cuda":
        raise ValueError(
            "update.cuda_graphs is true, but this process computes on the CPU, and CUDA graphs are of NVIDIA's GPUs: leave it out"
        )


def leave_default_stream(device: torch.device) -> None:
    """Have all that this thread does from now on be done on one stream on which calls can be recorded, which the default one is not.

    On that too, and not on one of their own, as cuBLAS has scratch memory for each stream: 32 MiB on some GPUs.

    Args:
        device: a GPU (`check_device`).
    """
    default = torch.cuda.default_stream(device)
    if torch.cuda.current_stream(device) == default:
        stream = torch.cuda.Stream(device)
        stream.wait_stream(default)
        torch.cuda.set_stream(stream)


def record_calls(
    unet: nn.Module, decoder: nn.Module, recordings: Recordings, gradients: bool, wrapped: bool
) -> None:
    """Have the calls of denoiser and decoder recorded from now on; names and classes stay.

    Args:
        unet: on a GPU (`check_device`), at the place where its weights stay.
        decoder: there too. It is recorded where the denoiser's gradients are, whose memory it then has: beside usual ones it would have some of its own.
        recordings: none yet.
        gradients: whether the denoiser's calls with a gradient are recorded. Not where these compute it again (checkpointing), which a recording cannot; nor where a
            loss has several of its answers, as only the first could be, and would be added in another order than usual.
        wrapped: whether DDP waits for its gradients.
    """
    unet.forward = Recorder(unet, recordings, with_gradients=gradients, copied=wrapped)
    if gradients:
        decoder.forward = Recorder(decoder, recordings, with_gradients=False)
