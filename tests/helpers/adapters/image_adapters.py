"""Makes adapters of image models with random numbers, in every file format, and the updates that
they stand for.

The updates are put together here, from the papers' formulas, so that whoever applies them otherwise
has something to be compared with.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from engine.contract.adapter_orders import AdapterOrder
from engine.lora.images.image_adapters import ImageAdapters
from tests.helpers.adapters.peft_adapters import Host, limits_of


def rand(*shape, generator):
    return torch.randn(shape, generator=generator)


def kernel_of(module):
    return tuple(module.kernel_size) if isinstance(module, nn.Conv2d) else ()


def low_rank(module, rank, g):
    out, inputs, kernel = module.weight.shape[0], module.weight.shape[1], kernel_of(module)
    ones = (1,) * len(kernel)
    down = rand(rank, inputs, *kernel, generator=g)
    up = rand(out, rank, *ones, generator=g)
    update = (up.flatten(1) @ down.flatten(1)).view(module.weight.shape)
    return {"lora_down.weight": down, "lora_up.weight": up}, update, rank


def tucker(module, rank, g):
    """LoCon's three weights; for a linear layer there are two."""
    kernel = kernel_of(module)
    if not kernel:
        return low_rank(module, rank, g)
    out, inputs = module.weight.shape[:2]
    down, mid = rand(rank, inputs, 1, 1, generator=g), rand(rank, rank, *kernel, generator=g)
    up = rand(out, rank, 1, 1, generator=g)
    update = torch.einsum("mnkl,ni,om->oikl", mid, down[..., 0, 0], up[..., 0, 0])
    parts = {"lora_down.weight": down, "lora_mid.weight": mid, "lora_up.weight": up}
    return parts, update, rank


def hadamard(module, rank, g):
    out, inputs = module.weight.shape[0], module.weight[0].numel()
    parts, halves = {}, []
    for number in (1, 2):
        a, b = rand(out, rank, generator=g), rand(rank, inputs, generator=g)
        parts |= {f"hada_w{number}_a": a, f"hada_w{number}_b": b}
        halves.append(a @ b)
    return parts, (halves[0] * halves[1]).view(module.weight.shape), rank


def hadamard_tucker(module, rank, g):
    kernel = kernel_of(module)
    if not kernel:
        return hadamard(module, rank, g)
    out, inputs = module.weight.shape[:2]
    parts, halves = {}, []
    for number in (1, 2):
        a, b = rand(rank, out, generator=g), rand(rank, inputs, generator=g)
        t = rand(rank, rank, *kernel, generator=g)
        parts |= {f"hada_w{number}_a": a, f"hada_w{number}_b": b, f"hada_t{number}": t}
        halves.append(torch.einsum("pqkl,po,qi->oikl", t, a, b))
    return parts, halves[0] * halves[1], rank


def _divisor(number):
    return next(d for d in (2, 3, 1) if number % d == 0)


def kronecker(module, rank, g, *, whole_right=False, whole_left=True, core=False):
    out, inputs, kernel = *module.weight.shape[:2], kernel_of(module)
    o1, i1 = _divisor(out), _divisor(inputs)
    o2, i2 = out // o1, inputs // i1
    if whole_left:
        left = rand(o1, i1, generator=g)
        parts = {"lokr_w1": left}
    else:
        a, b = rand(o1, rank, generator=g), rand(rank, i1, generator=g)
        parts, left = {"lokr_w1_a": a, "lokr_w1_b": b}, a @ b
    if whole_right:
        right = rand(o2, i2, *kernel, generator=g)
        parts["lokr_w2"] = right
    elif core and kernel:
        t, a = rand(rank, rank, *kernel, generator=g), rand(rank, o2, generator=g)
        b = rand(rank, i2, generator=g)
        parts |= {"lokr_t2": t, "lokr_w2_a": a, "lokr_w2_b": b}
        right = torch.einsum("pqkl,po,qi->oikl", t, a, b)
    else:
        cells = torch.Size(kernel).numel()
        a, b = rand(o2, rank, generator=g), rand(rank, i2 * cells, generator=g)
        parts |= {"lokr_w2_a": a, "lokr_w2_b": b}
        right = (a @ b).view(o2, i2, *kernel)
    update = torch.kron(left.view(o1, i1, *[1] * len(kernel)), right.contiguous())
    return parts, update, None if whole_left and whole_right else rank


WAYS = {
    "lora": low_rank,
    "locon": tucker,
    "loha": hadamard,
    "loha tucker": hadamard_tucker,
    "lokr": kronecker,
    "lokr whole": lambda m, r, g: kronecker(m, r, g, whole_right=True),
    "lokr factored": lambda m, r, g: kronecker(m, r, g, whole_left=False),
    "lokr core": lambda m, r, g: kronecker(m, r, g, core=True, whole_left=False),
}


@dataclass
class Written:
    """An adapter for some layers.

    Attributes:
        tensors: of its file.
        updates: what its layers' weights grow by with scale 1, by the layers' paths.
    """

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    updates: dict[str, torch.Tensor] = field(default_factory=dict)

    def save(self, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in self.tensors.items()}, path)
        return path


def write(
    model, paths, name_of, *, way="lora", ranks=(3, 5), alpha=2.0, seed=0, size=0.3, lengths=None
):
    """An adapter of layers of a model.

    Args:
        lengths: the name of DoRA's tensor; None: it is none.
        name_of: a layer's name in the file, by its path.
        ranks: of the layers in turn.
        alpha: None: the file does not say.
        size: about how large the updates' numbers are beside the weights'.
    """
    g = torch.Generator().manual_seed(seed)
    made = Written()
    for place, path in enumerate(paths):
        module = model.get_submodule(path)
        parts, update, rank = WAYS[way](module, ranks[place % len(ranks)], g)
        factor = size * float(module.weight.detach().std()) / float(update.std())
        last = "lora_up.weight" if "lora_up.weight" in parts else sorted(parts)[0]
        parts[last] = parts[last] * factor
        scale = 1.0 if rank is None or alpha is None else alpha / rank
        made.updates[path] = update * factor * scale
        if lengths is not None:
            parts[lengths], made.updates[path] = dora(module, made.updates[path], lengths, g)
        made.tensors |= {f"{name_of(path)}.{part}": tensor for part, tensor in parts.items()}
        if alpha is not None:
            made.tensors[f"{name_of(path)}.alpha"] = torch.tensor(alpha)
    return made


def dora(module, update, lengths, g):
    """Return the lengths of the updated weights' rows, and the update with these lengths."""
    weight = module.weight.detach()
    whole = weight + update
    norms = whole.flatten(1).norm(dim=1)
    wanted = norms * (0.7 + 0.6 * torch.rand(len(norms), generator=g))
    last = [1] * (weight.ndim - 1)
    change = whole * (wanted / norms).view(-1, *last) - weight
    if lengths == "dora_scale":
        return wanted.view(-1, *last), change
    return wanted.view(1, -1, 1, 1) if weight.ndim == 4 else wanted, change


def merge(model, updates, scale=1.0):
    """Add updates to the weights of a model of diffusers or transformers, in place."""
    with torch.no_grad():
        for path, update in updates.items():
            model.get_submodule(path).weight += scale * update


def layer_paths(model, *, kinds=(nn.Linear, nn.Conv2d)):
    """Return the paths of all layers that adapters may change."""
    return [path for path, module in model.named_modules() if isinstance(module, kinds)]


def kohya(prefix):
    return lambda path: f"{prefix}_{path.replace('.', '_')}"


def dotted(prefix):
    return lambda path: f"{prefix}.{path}"


def table_of(adapted, *, room=8, host=None, **limits):
    """Make an empty table of a model's layers."""
    most = limits_of(room, **limits)
    return ImageAdapters(adapted, host or Host(), most, dtype=torch.float32)


def settle(table, in_use=()):
    """Wait until all orders are done."""
    while table._loads:
        table.wait(5)
        table.advance(lambda: set(in_use))
    table.advance(lambda: set(in_use))


def load(table, name, place, *, replaces=False, in_use=()):
    """Load an adapter and return the answer."""
    answers = []
    table.load(AdapterOrder(name=name, folder=str(place), replaces=replaces), answers.append)
    settle(table, in_use)
    [answer] = answers
    return answer


def bring(table, name, in_use=()):
    """Have a request wait for an adapter; returns why it cannot be had, or None."""
    key = table.key_of(name)
    if table.take([key]):
        return None
    table.advance(lambda: set(in_use), [[key]])
    while table._loads:
        table.wait(5)
        table.advance(lambda: set(in_use), [[key]])
    return table.failure_of([key])


def unload(table, name, in_use=()):
    answers = []
    table.unload(name, answers.append)
    table.advance(lambda: set(in_use))
    return answers
