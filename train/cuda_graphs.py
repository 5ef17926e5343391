"""The denoiser's calls as CUDA graphs: the kernels of a call are recorded once and then started together.

A GPU that has done a kernel before the CPU has started the next one waits; with a small denoiser, or adapters, whose products are small and many, it waits most of
the time. A recorded call is the same kernels on the same numbers in the same order, so nothing changes but the time, and the memory: a recording keeps what its
kernels write for itself, where calls that are not recorded lend it to each other and to the decoder.

Calls of one kind (shapes, types, precision, with or without a gradient) share a recording. The first ones are made as usual, as libraries load and
choose kernels then; so calls that hardly come again, such as those of what is checked before training, are never recorded.

The gradients of a recorded call come all at once, at its end: DDP then has no backward pass left behind which to hide their exchange.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from train.determinism import only_deterministic

USUAL_CALLS = 2
"""Of a kind, before it is recorded."""

Call = Callable[..., tuple[Tensor]]


class Recording(Protocol):
    """A call of one kind. Its inputs and outputs lie where they lay when it was recorded."""

    inputs: Sequence[Tensor]
    output: Tensor
    slope: Tensor | None
    """Of the output, which `backward` reads; None without a gradient."""
    gradients: Sequence[Tensor | None]
    """Of the weights, which `backward` writes."""

    def forward(self) -> None:
        """Write `output` from `inputs`."""

    def backward(self) -> None:
        """Write `gradients` from `slope`, and from what `forward` has left."""


class CudaRecording:
    """Of kernels of a GPU."""

    def __init__(
        self, call: Callable[..., Tensor], inputs: Sequence[Tensor], weights: Sequence[Tensor]
    ) -> None:
        """Record, which computes nothing.

        Args:
            call: what is recorded, with a gradient where gradients are on.
            inputs: of the kind that is to come.
            weights: whose gradients are recorded.
        """
        self.inputs: Sequence[Tensor] = [tensor.clone() for tensor in inputs]
        self.slope: Tensor | None = None
        self.gradients: Sequence[Tensor | None] = ()
        # weights as autocast has just cast them are those of now
        torch.clear_autocast_cache()
        self._forward = torch.cuda.CUDAGraph()
        with self._recorded(self._forward):
            output = call(*self.inputs)
        if output.requires_grad:
            self.slope = torch.empty_like(output)
            self._backward = torch.cuda.CUDAGraph()
            device = output.device
            with (
                torch.autocast(device.type, enabled=False),
                only_deterministic(device),
                self._recorded(self._backward, self._forward.pool()),
            ):
                self.gradients = torch.autograd.grad(output, weights, self.slope, allow_unused=True)
        torch.clear_autocast_cache()
        self.output = output.detach()

    @staticmethod
    def _recorded(graph: torch.cuda.CUDAGraph, pool: Any = None) -> torch.cuda.graph:
        # of this thread's calls: NCCL has one that asks how far its work is
        return torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local")

    def forward(self) -> None:
        """See `Recording`."""
        self._forward.replay()

    def backward(self) -> None:
        """See `Recording`."""
        self._backward.replay()


class Recorder:
    """In place of a denoiser's `forward`: its calls, recorded."""

    def __init__(
        self, unet: nn.Module, recording: Callable[..., Recording] = CudaRecording, gradients: bool = True
    ) -> None:
        """Stand in for it.

        Args:
            unet: whose `forward` this is to be.
            recording: what makes and holds a recording.
            gradients: whether calls with a gradient are recorded too.
        """
        self.unet, self.gradients = unet, gradients
        self.usual: Call = unet.forward
        self.weights = {name: weight for name, weight in unet.named_parameters() if weight.requires_grad}
        self.recording = recording
        self.recordings: dict[Any, Recording] = {}
        self.met: Counter[Any] = Counter()
        self.asked: weakref.ref[_Asked] | None = None

    def __call__(self, *arguments: Any, **options: Any) -> tuple[Tensor]:
        """The denoiser's answer: recorded, but for the first calls of a kind, and those that a recording cannot make.

        It cannot hand a gradient to an input, nor answer again before the gradient of its last answer has been taken.
        """
        leaves, form = tree_flatten((arguments, options))
        inputs = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        with_gradient = torch.is_grad_enabled()
        if with_gradient and not self._can_record_a_gradient(inputs):
            return self.usual(*arguments, **options)
        kind = _kind(leaves, form, with_gradient)
        recording = self.recordings.get(kind)
        if recording is None:
            self.met[kind] += 1
            if self.met[kind] <= USUAL_CALLS:
                return self.usual(*arguments, **options)
            recording = self.recordings[kind] = self._record(leaves, form, inputs)
        torch._foreach_copy_(list(recording.inputs), inputs)
        if not with_gradient:
            recording.forward()
            return (recording.output.clone(),)
        asked = _Asked(recording, list(self.weights.values()))
        self.asked = weakref.ref(asked)
        answer: Tensor = _Replayed.apply(asked, *self.weights.values())
        return (answer,)

    def _can_record_a_gradient(self, inputs: Sequence[Tensor]) -> bool:
        """Whether it is to, no input wants one, and no answer is there whose gradient may still be asked for."""
        asked = None if self.asked is None else self.asked()
        awaited = asked is not None and not asked.answered
        return self.gradients and not awaited and not any(tensor.requires_grad for tensor in inputs)

    def _record(self, leaves: Sequence[Any], form: TreeSpec, inputs: Sequence[Tensor]) -> Recording:
        # what gathers a weight's gradient belongs to the stream on which the weight was first used, which is not that of a recording: so they are recorded by
        # other names for the same memory
        weights = {name: weight.detach().requires_grad_() for name, weight in self.weights.items()}

        def call(*tensors: Tensor) -> Tensor:
            answer: Tensor
            given = iter(tensors)
            filled = [next(given) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            arguments, options = tree_unflatten(filled, form)
            recorder, self.unet.forward = self.unet.forward, self.usual
            try:
                (answer,) = functional_call(self.unet, weights, arguments, options)
            finally:
                self.unet.forward = recorder
            return answer

        return self.recording(call, inputs, list(weights.values()))


class _Asked:
    """A recorded call with a gradient; gone when nobody can ask for that any more."""

    def __init__(self, recording: Recording, weights: Sequence[Tensor]) -> None:
        self.recording, self.weights = recording, weights
        self.versions = [weight._version for weight in weights]
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
        if [weight._version for weight in self.weights] != self.versions:
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
        recording.backward()
        ctx.asked.answered = True
        there = [gradient for gradient in recording.gradients if gradient is not None]
        # a weight's first gradient is kept, not copied, and the next one is written where this one was
        copies = iter(torch._foreach_mul(there, 1.0))
        return (None, *(None if gradient is None else next(copies) for gradient in recording.gradients))


def _kind(leaves: Sequence[Any], form: TreeSpec, with_gradient: bool) -> Any:
    """What calls have in common that one recording serves."""
    told = tuple(
        (leaf.shape, leaf.stride(), leaf.dtype) if isinstance(leaf, Tensor) else repr(leaf) for leaf in leaves
    )
    autocast = torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda")
    return told, str(form), with_gradient, torch.is_inference_mode_enabled(), autocast


def check_device(device: torch.device) -> None:
    """Refuse a device that has no CUDA graphs.

    Raises:
        ValueError: naming the field.
    """
    if device.type != "cuda":
        raise ValueError(
            "update.cuda_graphs is true, but this process computes on the CPU, and CUDA graphs are of NVIDIA's GPUs: leave it out"
        )


def record_calls(unet: nn.Module, checkpointing: bool) -> None:
    """Have a denoiser's calls recorded from now on; names and class stay.

    Args:
        unet: on a GPU (`check_device`), at the place where its weights stay.
        checkpointing: whether its gradient computes it again, which a recording cannot: then calls without a gradient alone are recorded.
    """
    unet.forward = Recorder(unet, gradients=not checkpointing)
