"""Finds which channels of a network must stay together, by sending channel numbers through its own forward pass.

Every layer with weights is replaced, for one forward pass, by one that writes down the numbers of its input channels
and gives fresh numbers to its output channels. Everything in between (concatenation, split, view, pooling,
upsampling) moves these numbers as it moves activations; where two tensors are added, multiplied or contracted, the
numbers that meet belong together. So no layer name and no model generation is known here.

Shapes: B images, C channels, N positions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from kd_vision.detectors.base import Detector

Ids = npt.NDArray[np.int64]

NO_CHANNEL = -1
"""Of a position that carries no channel of its own, such as a padded border or a weight of attention."""

_POSITIONS = 8
"""Of the coarsest map along a side: several, so that channels and positions cannot be confused."""
_BLENDS = {"add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_", "maximum", "minimum", "__add__", "__iadd__"}
_BLENDS |= {"__sub__", "__mul__", "__imul__", "__truediv__", "__radd__", "__rmul__"}
_KEEPS = {"silu", "relu", "relu6", "gelu", "sigmoid", "softmax", "hardswish", "hardsigmoid", "hardtanh", "leaky_relu"}
_KEEPS |= {"silu_", "relu_", "sigmoid_", "tanh", "mish", "dropout", "__pow__", "pow", "sqrt", "exp", "clamp", "mean"}
_KEEPS |= {"batch_norm", "group_norm", "layer_norm", "identity", "normalize", "softplus", "elu", "rsqrt", "__neg__"}


@dataclass(slots=True)
class Layer:
    """One layer with weights.

    Attributes:
        inputs: (C_in,) number of the channel that each input position carries.
        outputs: (C_out,) numbers of the output channels.
        side: of its output map, in positions; 0: it has none.
    """

    inputs: Ids
    outputs: Ids
    side: int = 0


@dataclass(slots=True)
class ChannelGraph:
    """Channels of a network.

    Attributes:
        layers: by module name; convolutions, linear layers and normalisations, in the order of the forward pass.
        classes: (number of channels,) the class of each channel; channels of one class must stay together.
        heads: class of a channel to the attention head that it belongs to.
    """

    layers: dict[str, Layer] = field(default_factory=dict)
    classes: Ids = field(default_factory=lambda: np.zeros(0, np.int64))
    heads: dict[int, int] = field(default_factory=dict)

    def inputs(self, name: str) -> Ids:
        """Return (C_in,) classes of the input positions of a layer; `NO_CHANNEL` where there is none."""
        return self._classes(self.layers[name].inputs)

    def outputs(self, name: str) -> Ids:
        """Return (C_out,) classes of the output channels of a layer."""
        return self._classes(self.layers[name].outputs)

    def _classes(self, ids: Ids) -> Ids:
        known = ids >= 0
        return np.where(known, self.classes[np.where(known, ids, 0)], NO_CHANNEL)


def channel_graph(detector: Detector) -> ChannelGraph:
    """Trace the channels of a detector.

    Args:
        detector: a copy is traced, so that it stays as it is.

    Source: grouping coupled channels by the graph is DepGraph's idea (Fang et al., CVPR 2023); here the graph's own
    operations carry the numbers, so that two networks of different widths can be compared.
    """
    tracer = _Tracer()
    twin = copy.deepcopy(detector).cpu().float().eval()
    channels, side = detector.spec.input_channels, detector.fixed_size or _POSITIONS * detector.spec.size_multiple
    values = torch.as_tensor(tracer.fresh(channels), dtype=torch.float64)[None, :, None, None]
    images = _ids(tracer, values.expand(1, -1, side, side).clone())
    with torch.no_grad():
        tracer.replace_layers(twin)
        twin.raw_outputs(images)
    return tracer.graph()


class _Tracer:
    def __init__(self) -> None:
        self.layers: dict[str, Layer] = {}
        self.parent: list[int] = []
        self.heads: dict[int, int] = {}

    def fresh(self, count: int) -> Ids:
        """Return the numbers of `count` new channels."""
        start = len(self.parent)
        self.parent += range(start, start + count)
        return np.arange(start, start + count)

    def root(self, one: int) -> int:
        while self.parent[one] != one:
            self.parent[one] = self.parent[self.parent[one]]
            one = self.parent[one]
        return one

    def join(self, first: Ids, second: Ids) -> None:
        """Put channels that meet into one class."""
        for one, other in zip(first.tolist(), second.tolist(), strict=True):
            if one >= 0 and other >= 0:
                a, b = self.root(one), self.root(other)
                self.parent[max(a, b)] = min(a, b)

    def record(self, name: str, inputs: Ids, outputs: Callable[[], Ids], side: int = 0) -> Layer:
        """Write down a layer; of one that runs once for each level (the head of RetinaNet), join the inputs."""
        if name in self.layers:
            self.join(self.layers[name].inputs, inputs)
        else:
            self.layers[name] = Layer(inputs, outputs(), side)
        return self.layers[name]

    def replace_layers(self, net: nn.Module) -> None:
        """Replace the forward of every layer with weights."""
        for name, module in net.named_modules():
            leaf = _leaf(self, name, module)
            if leaf is not None:
                module.forward = leaf

    def graph(self) -> ChannelGraph:
        classes = np.array([self.root(one) for one in range(len(self.parent))], np.int64)
        heads = {int(classes[channel]): int(classes[head]) for channel, head in self.heads.items()}
        return ChannelGraph(self.layers, classes, heads)


def _leaf(tracer: _Tracer, name: str, module: nn.Module) -> Callable[..., Any] | None:
    """Return the tracing forward of a layer with weights; None: the module's own forward is run."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        return lambda x, *_: _convolution(tracer, name, module, x)
    if isinstance(module, nn.MultiheadAttention):  # its width is the same in all models of a family
        return lambda query, *_, **__: (query, None)
    if isinstance(module, nn.Linear):
        return lambda x: _linear(tracer, name, module, x)
    if isinstance(module, nn.LayerNorm):
        return lambda x: _norm(tracer, name, x, -1)
    if isinstance(module, nn.GroupNorm | nn.modules.batchnorm._BatchNorm) or _is_frozen_norm(module):
        return lambda x: _norm(tracer, name, x, 1)
    return None


def _is_frozen_norm(module: nn.Module) -> bool:
    return type(module).__name__ == "FrozenBatchNorm2d"


def _convolution(tracer: _Tracer, name: str, module: Any, x: Tensor) -> Tensor:
    inputs = _along(x, 1)
    height, width = map_size(module, x)
    layer = tracer.record(name, inputs, lambda: tracer.fresh(module.out_channels), width)
    if module.groups > 1 and module.groups == module.in_channels == module.out_channels:
        tracer.join(inputs, layer.outputs)  # depthwise: a filter belongs to its channel
    values = torch.as_tensor(layer.outputs, dtype=torch.float64)[None, :, None, None]
    return _ids(tracer, values.expand(len(x), -1, height, width).clone())


def map_size(module: Any, x: Tensor) -> tuple[int, int]:
    """Return height and width of a layer's output map, from a layer of the same geometry with one channel."""
    settings = {name: getattr(module, name) for name in ("stride", "padding", "dilation")}
    if isinstance(module, nn.ConvTranspose2d):
        settings["output_padding"] = module.output_padding
    twin = type(module)(1, 1, module.kernel_size, bias=False, **settings)
    out = twin(x.as_subclass(Tensor)[:1, :1].float())
    return int(out.shape[-2]), int(out.shape[-1])


def _linear(tracer: _Tracer, name: str, module: nn.Linear, x: Tensor) -> Tensor:
    layer = tracer.record(name, _along(x, -1), lambda: tracer.fresh(module.out_features))
    values = torch.as_tensor(layer.outputs, dtype=torch.float64)
    return _ids(tracer, values.expand(*x.shape[:-1], -1).clone())


def _norm(tracer: _Tracer, name: str, x: Tensor, axis: int) -> Tensor:
    channels = _along(x, axis)
    tracer.record(name, channels, lambda: channels)
    return x


def _along(x: Tensor, axis: int) -> Ids:
    """Return the numbers along an axis, read in the middle of the others, where no padding reaches."""
    place: list[Any] = [size // 2 for size in x.shape]
    place[0 if axis != 0 else 1] = 0
    place[axis] = slice(None)
    values = x.as_subclass(Tensor)[tuple(place)].double().numpy()
    whole = np.isfinite(values) & (values == np.floor(values)) & (values >= 0)
    return np.where(whole, np.where(whole, values, 0), NO_CHANNEL).astype(np.int64)


def _ids(tracer: _Tracer, values: Tensor) -> _IdTensor:
    tensor = values.as_subclass(_IdTensor)
    tensor.tracer = tracer
    return tensor


class _IdTensor(Tensor):
    """A tensor whose values are numbers of channels."""

    tracer: _Tracer

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        numbers = [one for one in args if _is_numbered(one)]
        numbers += [one for arg in args if isinstance(arg, list | tuple) for one in arg if _is_numbered(one)]
        tracer = numbers[0].tracer if numbers else None
        name = getattr(function, "__name__", "")
        with torch._C.DisableTorchFunctionSubclass():
            if tracer is None:
                return function(*args, **kwargs)
            result = _special(tracer, name, function, args, kwargs)
        return _wrap(tracer, result)


def _is_numbered(one: Any) -> bool:
    return isinstance(one, _IdTensor) and hasattr(one, "tracer")


def _wrap(tracer: _Tracer, result: Any) -> Any:
    if isinstance(result, Tensor) and result.is_floating_point():
        return _ids(tracer, result)
    if isinstance(result, list | tuple) and not isinstance(result, torch.Size):
        wrapped = [_wrap(tracer, one) for one in result]
        return wrapped if isinstance(result, list) else tuple(wrapped)
    return result


def _special(tracer: _Tracer, name: str, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run one operation on numbers: blends join, activations keep, contractions join what they contract."""
    if name in _BLENDS:
        return _blend(tracer, args)
    if name in ("matmul", "__matmul__", "bmm", "__rmatmul__"):
        return _contract(tracer, *args[:2])
    if name == "scaled_dot_product_attention":
        query, key, value = args[:3]
        weights = _contract(tracer, query, key.transpose(-2, -1))
        return _contract(tracer, weights, value)
    if name in _KEEPS:
        return args[0].mean(*args[1:], **kwargs) if name == "mean" else args[0]
    if name in ("adaptive_avg_pool2d", "avg_pool2d"):
        return _pooled(function, args, kwargs)
    return function(*args, **kwargs)


def _pooled(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    shape = function(torch.ones_like(args[0], dtype=torch.float32), *args[1:], **kwargs).shape
    middle = args[0][..., args[0].shape[-2] // 2, args[0].shape[-1] // 2]
    pooled: Tensor = middle[..., None, None].expand(shape).clone()
    return pooled


def _blend(tracer: _Tracer, args: tuple[Any, ...]) -> Tensor:
    """Join the channels that an elementwise operation brings together; the first operand's numbers go on."""
    tensors = [one for one in args[:2] if isinstance(one, Tensor)]
    numbered = [one for one in tensors if _is_numbered(one)]
    if len(tensors) < 2 or len(numbered) < 2:
        shape = np.broadcast_shapes(*(one.shape for one in tensors))
        return numbered[0].as_subclass(Tensor).expand(shape).clone()
    first, second = (one.as_subclass(Tensor) for one in numbered)
    sizes = len(set(first.flatten().tolist())), len(set(second.flatten().tolist()))
    shape = np.broadcast_shapes(first.shape, second.shape)
    first, second = first.expand(shape), second.expand(shape)
    # One number for all channels is a gate over positions: it belongs to no channel.
    if min(sizes) == 1 and max(sizes) > 1:
        return (first if sizes[0] > 1 else second).clone()
    pairs = np.unique(torch.stack((first.flatten(), second.flatten())).long().numpy(), axis=1)
    tracer.join(pairs[0], pairs[1])
    return first.clone()


def _contract(tracer: _Tracer, first: Tensor, second: Tensor) -> Tensor:
    """Multiply (..., N, C) by (..., C, M).

    Where channels are contracted (query and key), they are joined pair by pair, and the product gets one new number
    for each head: the mark by which the value of the same head is found. Where positions are contracted (weights and
    value), the value's numbers go on, and its channels join the mark's head.
    """
    a, b = first.as_subclass(Tensor), second.as_subclass(Tensor)
    rows, columns = a[..., :1, :], b[..., :, :1].transpose(-2, -1)  # (..., 1, contracted)
    shape = (*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1])
    if _constant(rows) and not _constant(a[..., :, :1]):  # value (C, N) @ weights (N, M)
        return _carried(tracer, a[..., :1], b[..., :1, :1], shape)
    if _constant(columns) and not _constant(b[..., :1, :]):  # weights (N, M) @ value (M, C)
        return _carried(tracer, b[..., :1, :], a[..., :1, :1], shape)
    common = np.broadcast_shapes(rows.shape, columns.shape)
    pairs = rows.expand(common), columns.expand(common)
    out = torch.full(shape, float(NO_CHANNEL), dtype=torch.float64)
    flat = out.view(-1, *shape[-2:])
    for index, (q, k) in enumerate(zip(*(one.reshape(-1, one.shape[-1]) for one in pairs), strict=True)):
        first_ids, second_ids = q.long().numpy(), k.long().numpy()
        tracer.join(first_ids, second_ids)
        known = first_ids[first_ids >= 0]
        if not len(known):
            continue
        head = tracer.heads.get(int(known[0]))
        head = int(tracer.fresh(1)[0]) if head is None else head
        tracer.heads |= dict.fromkeys(known.tolist(), head)
        flat[index] = head
    return out


def _constant(values: Tensor) -> bool:
    """Whether each row holds one number."""
    flat = values.reshape(len(values) if values.ndim == 1 else -1, values.shape[-1]) if values.shape[-1] > 1 else None
    if flat is None:
        flat = values.reshape(-1, values.shape[-2]) if values.ndim > 1 else values[None]
    return bool((flat == flat[:, :1]).all())


def _carried(tracer: _Tracer, value: Tensor, mark: Tensor, shape: tuple[int, ...]) -> Tensor:
    common = np.broadcast_shapes(value.shape, mark.shape)
    value, mark = value.expand(common), mark.expand(common)
    for channel, head in zip(value.flatten().long().tolist(), mark.flatten().long().tolist(), strict=True):
        if channel >= 0 and head >= 0:
            tracer.heads[channel] = head
    return value.expand(shape).clone()
