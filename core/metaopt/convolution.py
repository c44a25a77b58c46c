"""Convolution, normalisation, ReLU and pooling in an order that suits the hardware, with all their derivatives."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.functional import conv2d, max_pool2d, pad

AT_ONCE = 2**19
"""Numbers of a first layer's maps that are in memory at a time: two megabytes, which stay in the cache."""
FEW = 4
"""A layer is a product of patches where these have less than so many times the numbers of its maps."""
aten = torch.ops.aten


class ConvBlock(nn.Sequential):
    """Convolution, normalisation, ReLU and perhaps 2×2 max-pooling: torch's layers, computed in a faster order.

    It holds torch's own layers in the textbook's order, and equals them in all derivatives. What differs: pictures lie
    in memory with the channels last, in which max-pooling is some ten times faster; a first layer, of a few channels,
    is one matrix product of patches; where it is pooled, its statistics come from the moments of the patches, which are
    far fewer numbers than what it gives; and max-pooling, which commutes with what does not fall, comes before the
    normalisation's scale and shift, the bias and ReLU, for which that leaves a quarter of the work. A channel whose
    scale is negative is convolved with the opposite weights.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(n, n_in, height, width) to (n, n_out, height', width')."""
        if torch.compiler.is_exporting():  # a program for any number of pictures, which parts of a size would fix
            for layer in self:
                x = layer(x)
            return x
        conv = next(layer for layer in self if isinstance(layer, nn.Conv2d))
        norm = next((layer for layer in self if isinstance(layer, (nn.GroupNorm, nn.BatchNorm2d))), None)
        assert conv.bias is not None
        first = conv.in_channels * conv.kernel_size[0] ** 2 < FEW * conv.out_channels
        if not any(isinstance(layer, nn.MaxPool2d) for layer in self):
            if not first or isinstance(norm, nn.GroupNorm):  # which vmap cannot run with the channels last
                maps = conv(x)
            else:  # contiguous columns, or torch takes their gradient by a product in the order that is slower
                patches, columns, height, width = _patches(x, conv)
                rows = patches.mT @ columns.contiguous() + conv.bias  # (n, n_pixels, n_out)
                maps = torch.unflatten(rows, 1, (height, width)).permute(0, 3, 1, 2)
            unpooled: Tensor = (maps if norm is None else norm(maps)).relu()
            return unpooled
        sign = torch.ones_like(conv.bias)
        if norm is not None:
            sign = torch.where(norm.weight.detach() < 0, -sign, sign)
        if first:
            maps, mean, variance = _first(x, conv, sign, norm)
        else:
            maps = conv2d(x, conv.weight * sign[:, None, None, None], None, conv.stride, conv.padding)
            mean, variance = _statistics(maps, conv.bias, sign, norm)
            maps = max_pool2d(maps, 2)
        if norm is None:
            return (maps + conv.bias[:, None, None]).relu()
        scale = norm.weight * (variance + norm.eps).rsqrt()  # (n_out,) or (n, n_out)
        shift = norm.bias + (conv.bias - mean) * scale
        return torch.addcmul(shift[..., None, None], maps, (scale * sign)[..., None, None]).relu()


def _first(x: Tensor, conv: nn.Conv2d, sign: Tensor, norm: nn.Module | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return a convolution of few channels without its bias, times signs and max-pooled, and its `_statistics`.

    Those are moments of the patches, seen through the weights.
    """
    patches, columns, height, width = _patches(x, conv)
    bias = conv.bias
    assert bias is not None
    lower = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
    rows, _ = _apply(_PoolOfProduct, patches.to(lower), (columns * sign).to(lower), height, width)
    maps = rows.unflatten(1, (height // 2, width // 2)).permute(0, 3, 1, 2)
    if norm is None:
        return maps, bias, bias
    return maps, *_moments_of_product(patches, columns, bias, norm)


def _moments_of_product(patches: Tensor, columns: Tensor, bias: Tensor, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Return the `_statistics` of patches (n, n_in * size², n_pixels) times columns, plus bias."""
    with torch.autocast(patches.device.type, enabled=False):  # sums of many numbers
        patches = patches.to(columns)
        centres = patches.mean(2)  # (n, n_in * size²)
        if isinstance(norm, nn.BatchNorm2d):
            centre = centres.mean(0)
            off = patches - centre[:, None]
            covariance = (off @ off.mT).mean(0) / patches.shape[2]
            return centre @ columns + bias, ((covariance @ columns) * columns).sum(0)
        off = patches - centres[:, :, None]
        covariances = off @ off.mT / patches.shape[2]  # (n, n_in * size², n_in * size²)
        of_channel = centres @ columns + bias  # (n, n_out)
        mean = of_channel.mean(1, keepdim=True)
        within = covariances.flatten(1) @ (columns @ columns.T).flatten() / len(bias)  # (n,)
        return mean, within[:, None] + (of_channel - mean).square().mean(1, keepdim=True)


def _patches(x: Tensor, conv: nn.Conv2d) -> tuple[Tensor, Tensor, int, int]:
    """Return patches (n, n_in * size², n_pixels) and columns (n_in * size², n_out), whose product is the convolution.

    With them height and width of what it gives.
    """
    stride, padding, size = conv.stride[0], int(conv.padding[0]), conv.kernel_size[0]
    windows = pad(x, (padding,) * 4).unfold(2, size, stride).unfold(3, size, stride)
    n, _, height, width = windows.shape[:4]
    patches = windows.permute(0, 1, 4, 5, 2, 3).reshape(n, -1, height * width)
    return patches, conv.weight.flatten(1).T, height, width


def _statistics(maps: Tensor, bias: Tensor, sign: Tensor, norm: nn.Module | None) -> tuple[Tensor, Tensor]:
    """Return mean and variance of `maps * sign + bias`: (n_out,) of a batch, (n, 1) of each example.

    From the mean of squares: of maps that are nearly constant this loses digits, but only where the variance is some
    millionth of the mean's square, which ReLUs of what was normalised do not come to. Without a norm, it is `bias`.
    """
    if norm is None:
        return bias, bias
    if isinstance(norm, nn.BatchNorm2d):
        mean, squares = _apply(_Moments, maps, (0, 2, 3))  # (n_out,)
        return mean * sign + bias, (squares - mean.square()).clamp(min=0)
    of_channel, squares = _apply(_Moments, maps, (2, 3))  # (n, n_out)
    of_channel = of_channel * sign
    mean = (of_channel + bias).mean(1, keepdim=True)
    with_bias = (squares + bias * (2 * of_channel + bias)).mean(1, keepdim=True)
    return mean, (with_bias - mean.square()).clamp(min=0)


def _apply(function: type[Function], *inputs: Any) -> Any:
    return function.apply(*inputs)  # type: ignore[no-untyped-call] # torch leaves it so


class _Moments(Function):
    """The means of numbers (n, n_out, height, width) and of their squares over some dimensions.

    Its backward passes over the numbers once, where that of torch's own operators does five times.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(maps: Tensor, over: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        exact = torch.promote_types(maps.dtype, torch.float32)  # or bfloat16 would leave nothing of the variance
        return maps.mean(over, dtype=exact), maps.square().mean(over, dtype=exact)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        maps, ctx.over = inputs
        ctx.save_for_backward(maps)

    @staticmethod
    def backward(ctx: Any, of_mean: Tensor, of_squares: Tensor) -> tuple[Tensor, None]:
        (maps,) = ctx.saved_tensors
        n = 1
        for dim in ctx.over:
            n *= maps.shape[dim]
        mean, squares = (of_mean / n).to(maps), (of_squares * (2 / n)).to(maps)
        return torch.addcmul(mean[..., None, None], maps, squares[..., None, None]), None


# A first layer with its pooling never holds all its maps. What is pooled is linear in the patches and in the columns,
# given where the largest of each four is, so that its derivatives, and theirs, are three functions of one kind:
# of (patches, columns, rows), the sum over all that is pooled of rows * (patches.mT @ columns), by each of the three.


class _PoolOfProduct(Function):
    """Patches (n, k, n_pixels) times columns (k, n_out), max-pooled: rows (n, n_pooled, n_out), and from where."""

    generate_vmap_rule = True

    @staticmethod
    def forward(patches: Tensor, columns: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        rows, places = [], []
        for part in _parts(patches, columns):
            maps = torch.unflatten(_products(part, columns), 1, (height, width)).permute(0, 3, 1, 2)
            pooled, at = aten.max_pool2d_with_indices(maps, [2, 2], [2, 2])
            rows.append(pooled.permute(0, 2, 3, 1).flatten(1, 2))
            places.append(at.permute(0, 2, 3, 1).flatten(1, 2))
        return torch.cat(rows), torch.cat(places)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        patches, columns, height, width = inputs
        ctx.size = height, width
        ctx.save_for_backward(patches, columns, output[1])

    @staticmethod
    def backward(ctx: Any, rows: Tensor, _: Any) -> tuple[Tensor | None, Tensor, None, None]:
        patches, columns, places = ctx.saved_tensors
        of_patches = _apply(_ByPatches, columns, rows, places, ctx.size) if ctx.needs_input_grad[0] else None
        return of_patches, _apply(_ByColumns, patches, rows, places, ctx.size), None, None


class _ByRows(Function):
    """What `places` say of the patches times the columns: rows (n, n_pooled, n_out)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(patches: Tensor, columns: Tensor, places: Tensor, size: tuple[int, int]) -> Tensor:
        parts = zip(_parts(patches, columns), _parts(places, columns, patches.shape[2]), strict=True)
        return torch.cat([_products(part, columns).gather(1, at) for part, at in parts])

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *tensors, ctx.size = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, rows: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        patches, columns, places = ctx.saved_tensors
        of_patches = _apply(_ByPatches, columns, rows, places, ctx.size) if ctx.needs_input_grad[0] else None
        of_columns = _apply(_ByColumns, patches, rows, places, ctx.size) if ctx.needs_input_grad[1] else None
        return of_patches, of_columns, None, None


class _ByColumns(Function):
    """The gradient (k, n_out) by the columns, for that by the rows."""

    generate_vmap_rule = True

    @staticmethod
    def forward(patches: Tensor, rows: Tensor, places: Tensor, size: tuple[int, int]) -> Tensor:
        parts = (_parts(tensor, rows[0], patches.shape[2]) for tensor in (patches, rows, places))
        return torch.stack([(part @ _spread(r, at, size)).sum(0) for part, r, at in zip(*parts, strict=True)]).sum(0)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *tensors, ctx.size = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, columns: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        patches, rows, places = ctx.saved_tensors
        of_patches = _apply(_ByPatches, columns, rows, places, ctx.size) if ctx.needs_input_grad[0] else None
        of_rows = _apply(_ByRows, patches, columns, places, ctx.size) if ctx.needs_input_grad[1] else None
        return of_patches, of_rows, None, None


class _ByPatches(Function):
    """The gradient (n, k, n_pixels) by the patches, for that by the rows."""

    generate_vmap_rule = True

    @staticmethod
    def forward(columns: Tensor, rows: Tensor, places: Tensor, size: tuple[int, int]) -> Tensor:
        n_pixels = size[0] * size[1]
        parts = zip(_parts(rows, columns, n_pixels), _parts(places, columns, n_pixels), strict=True)
        return torch.cat([columns @ _spread(r, at, size).mT for r, at in parts])

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *tensors, ctx.size = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, patches: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        columns, rows, places = ctx.saved_tensors
        of_columns = _apply(_ByColumns, patches, rows, places, ctx.size) if ctx.needs_input_grad[0] else None
        of_rows = _apply(_ByRows, patches, columns, places, ctx.size) if ctx.needs_input_grad[1] else None
        return of_columns, of_rows, None, None


def _parts(tensor: Tensor, columns: Tensor, n_pixels: int | None = None) -> Iterator[Tensor]:
    """Yield as many examples of a tensor (n, …) at a time as give AT_ONCE numbers of maps; on a GPU all."""
    n_pixels = n_pixels or tensor.shape[2]
    at_once = max(1, AT_ONCE // (n_pixels * columns.shape[-1]))
    yield from torch.split(tensor, at_once if tensor.device.type == "cpu" else len(tensor))


def _products(patches: Tensor, columns: Tensor) -> Tensor:
    """Return patches (n, k, n_pixels) times columns (k, n_out): (n, n_pixels, n_out)."""
    return torch.bmm(patches.mT, columns.expand(len(patches), -1, -1))


def _spread(rows: Tensor, places: Tensor, size: tuple[int, int]) -> Tensor:
    """Return numbers (n, n_pixels, n_out): rows (n, n_pooled, n_out) at their places, 0 elsewhere."""
    height, width = size

    def maps(tensor: Tensor, height: int, width: int) -> Tensor:
        return torch.unflatten(tensor, 1, (height, width)).permute(0, 3, 1, 2)

    like = maps(rows.new_empty(len(rows), height * width, rows.shape[2]), height, width)
    gradient, at = maps(rows, height // 2, width // 2), maps(places, height // 2, width // 2)
    spread: Tensor = aten.max_pool2d_with_indices_backward(gradient, like, [2, 2], [2, 2], [0, 0], [1, 1], False, at)
    return spread.permute(0, 2, 3, 1).flatten(1, 2)
