"""From an `nn.Module` and an example to a `Graph`: the only file that knows torch.export.

The module is exported once with a dynamic batch and made functional (no in-place operation, no alias is left).
Whatever would make a conversion silently wrong is refused here, all of it at once, before any data is read.
"""

from __future__ import annotations

import copy
import inspect
import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from transpike.errors import CaptureError
from transpike.graph import passes
from transpike.graph.encode import (
    encode,
    filled,
    is_data,
    is_floating,
    is_random,
    is_symbolic,
    label,
    module_path,
    op_name,
    shape_of,
)
from transpike.graph.ir import DeviceSlot, Graph, Input, Node, Ref, Role, tree_refs
from transpike.graph.prepared import NETWORK, Prepared, modes_kept
from transpike.graph.probe import mixing_problems
from transpike.graph.roles import base_name

__all__ = ["Pooling", "capture", "traced"]

Pooling = passes.Pooling

_LARGEST_BATCH = 65_535  # some operations on a GPU take no more, and tracing there says so
_STATEFUL_NORMS = ("aten._native_batch_norm_legit_functional", "aten._native_batch_norm_legit", "aten.native_batch_norm")


def capture(model: nn.Module, example: Any, *, pooling: Pooling = Pooling.RATE) -> Graph:
    """Trace ``model`` on ``example`` and normalise the result.

    Args:
        model: any network in eval mode. It is left exactly as it is: weights, mode, hooks.
        example: one batch of its input: a tensor (N first), a tuple of tensors, or a dict of keyword tensors.
        pooling: where max pooling stands, see `Pooling`.

    Returns:
        The graph, with weights of its own (copies), batch norm folded, sites named.

    Raises:
        CaptureError: with every reason found, one line each.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval()
        >>> [site.name for site in capture(net, torch.zeros(2, 4)).sites]
        ['1#1']
    """
    graph, pair, problems = _traced(model, example)
    if graph is not None:
        graph = passes.normalise(graph, pooling)
        problems += mixing_problems(graph, pair)
    if graph is None or problems:
        raise CaptureError(_name_of(model), problems)
    return graph


def traced(model: nn.Module, example: Any) -> Graph:
    """What `capture` normalises: for who brings new weights to it, `transpike.graph.passes.normalise`, time and again.

    Raises:
        CaptureError: with every reason found, one line each; mixed batches are not looked for.
    """
    graph, _, problems = _traced(model, example)
    if graph is None or problems:
        raise CaptureError(_name_of(model), problems)
    return graph


def _name_of(model: Any) -> str:
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    return type(model.network if isinstance(model, Prepared) else model).__name__


def _traced(model: nn.Module, example: Any) -> tuple[Graph | None, list[torch.Tensor], list[str]]:
    """The exported program in our own nodes, None if there is none; two samples that it was traced on; all problems."""
    name = _name_of(model)
    if not isinstance(model, nn.Module):
        raise CaptureError(name, ["it is not a torch.nn.Module: pass the network itself"])
    model = getattr(model, "_orig_mod", model)
    args, kwargs = _arguments(name, example)
    problems = [*_input_problems(args, kwargs), *_model_problems(model)]
    if problems:
        # look on for further problems in a copy that is fit to be traced, so that all are reported at once
        args, kwargs = pytree.tree_map(_sound, (args, kwargs))
        model = copy.deepcopy(model).eval()
    model, args, kwargs = _as_the_weights(model, args, kwargs)
    pair = pytree.tree_map(_two_samples, (args, kwargs))
    program, export_problems = _export(model, *pair)
    if program is None:
        return None, [], problems + export_problems
    wrapper = NETWORK if isinstance(model, Prepared) else ""
    graph, translation_problems = _translate(program, name, *pair, wrapper=wrapper)
    return None if translation_problems else graph, _flat(*pair), problems + translation_problems


def _arguments(name: str, example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example, Mapping):
        args, kwargs = (), dict(example)
    else:
        args, kwargs = tuple(example) if isinstance(example, (tuple, list)) else (example,), {}
    strangers = {type(x).__name__ for x in (*args, *kwargs.values()) if not isinstance(x, torch.Tensor)}
    if strangers or not (args or kwargs):
        what = ", ".join(sorted(strangers)) or "nothing"
        raise CaptureError(name, [f"the example holds {what}: give a tensor, a tuple or a dict of tensors, batch first"])
    return args, kwargs


def _input_problems(args: Sequence[torch.Tensor], kwargs: Mapping[str, torch.Tensor]) -> list[str]:
    problems = []
    for key, x in [*enumerate(args), *kwargs.items()]:
        if not x.is_floating_point():
            problems.append(f"input {key} has dtype {x.dtype}: spikes carry real values; convert it to float or embed it first")
        if x.dim() == 0 or x.shape[0] == 0:
            problems.append(f"input {key} has shape {tuple(x.shape)}: the first axis must be a batch of at least one sample")
    return problems


def _model_problems(model: nn.Module) -> list[str]:
    problems = []
    if model.training:
        problems.append("the model is in training mode: call model.eval() first")
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            problems.append(f"parameter {name} has NaN or infinite values: load sound weights")
    return problems


def _sound(x: torch.Tensor) -> torch.Tensor:
    """An input that can be traced in place of one that is empty or not real."""
    x = x if x.is_floating_point() else x.float()
    return x if x.dim() and len(x) else x.new_zeros((2, *x.shape[1:]))


def _two_samples(x: torch.Tensor) -> torch.Tensor:
    """The first two samples, the first one twice if it is alone: torch.export takes a batch of 1 for a constant."""
    x = x.detach()
    return torch.cat([x[:2], x[:1]])[:2] if x.dim() and len(x) else x


def _as_the_weights(model: nn.Module, args: Any, kwargs: Any) -> tuple[nn.Module, Any, Any]:
    """Inputs in the precision and on the device of the weights, as far as these agree.

    Half-precision networks are simulated in float32: membranes add up many small currents.
    """
    half = (torch.float16, torch.bfloat16)
    if any(p.dtype in half for p in model.parameters()):
        model = copy.deepcopy(model).float()
    precisions = {p.dtype for p in model.parameters() if p.is_floating_point()}
    devices = {p.device for p in model.parameters()}

    def fitted(x: torch.Tensor) -> torch.Tensor:
        own = torch.float32 if x.dtype in half else x.dtype
        dtype = next(iter(precisions)) if len(precisions) == 1 else own
        return x.to(next(iter(devices)) if len(devices) == 1 else x.device, dtype)

    return (model, *pytree.tree_map(fitted, (args, kwargs)))


def _export(model: nn.Module, args: Any, kwargs: Any) -> tuple[ExportedProgram | None, list[str]]:
    batch = Dim("batch", min=1, max=_LARGEST_BATCH)
    shapes = pytree.tree_map(lambda _: {0: batch}, (args, kwargs))
    try:
        with modes_kept(model), _silence(), torch.no_grad():
            dynamic = {**dict(zip(_parameter_names(model), shapes[0], strict=False)), **shapes[1]} if kwargs else shapes[0]
            program = torch.export.export(model, args, kwargs, dynamic_shapes=dynamic, strict=False)
            return program.run_decompositions({}), []
    except Exception as error:  # torch.export has no closed list of what it raises
        return None, [_explain(error)]


@contextmanager
def _silence() -> Iterator[None]:
    """torch logs and prints whole programs for what we report in one line."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _parameter_names(model: nn.Module) -> list[str]:
    return [p.name for p in inspect.signature(model.forward).parameters.values()]


def _explain(error: Exception) -> str:
    """One line that names the cause that users can mend."""
    text = str(error)
    where = ""
    for line in text.splitlines():
        if line.strip().startswith('File "') and "/torch/" not in line:
            where = f" (at {line.strip()})"
            break
    kind = type(error).__name__
    if "DataDependent" in kind or "data-dependent" in text or ("UserError" in kind and "control flow" in text):
        return f"control flow that depends on the data{where}: replace `if`/`while` on tensor values by torch.where"
    if "ConstraintViolation" in kind or "specializ" in text or "Constraints violated" in text or "invalid for input of" in text:
        return "the batch size is fixed inside the model (a shape like view(2, -1)): use x.shape[0] or flatten(1)"
    first = next((line for line in text.splitlines() if line.strip()), kind)
    return f"torch.export cannot trace it: {kind}: {first[:300]}{where}"


def _flat(args: Sequence[torch.Tensor], kwargs: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    return [*args, *kwargs.values()]


def _translate(
    program: ExportedProgram, name: str, args: Sequence[torch.Tensor], kwargs: Mapping[str, torch.Tensor], wrapper: str
) -> tuple[Graph, list[str]]:
    """From the exported program to our own nodes; also the reasons why it cannot be done."""
    problems: list[str] = []
    signature = program.graph_signature
    tensors = {**program.state_dict, **program.constants}
    keys = [*range(len(args)), *kwargs]
    inputs: list[Input] = []
    params: dict[str, torch.Tensor] = {}
    names: dict[str, str] = {}  # fx name -> our name of inputs and parameters
    fx_nodes = {node.name: node for node in program.graph.nodes}
    for spec in signature.input_specs:
        fx_name = spec.arg.name
        if spec.kind is InputKind.USER_INPUT:
            if not isinstance(fx_nodes[fx_name].meta.get("val"), torch.Tensor):
                continue
            x = _flat(args, kwargs)[len(inputs)]
            names[fx_name] = f"input:{keys[len(inputs)]}"
            inputs.append(Input(names[fx_name], keys[len(inputs)], tuple(x.shape[1:]), x.dtype))
        elif spec.target is not None and spec.target in tensors:
            names[fx_name] = spec.target
            params[spec.target] = tensors[spec.target].detach().clone(memory_format=torch.contiguous_format)
    mutated = [*signature.buffers_to_mutate.values(), *signature.user_inputs_to_mutate.values()]
    if mutated:
        problems.append(
            f"the model changes its own state or input in forward ({', '.join(sorted(map(str, mutated))[:3])}): "
            "a converted network has no such memory; freeze it or take it out"
        )
    nodes: list[Node] = []
    random: Counter[str] = Counter()
    stateful: list[str] = []
    fixed = {fx_name for fx_name, ours in names.items() if ours in params}  # what depends on parameters alone
    for fx in program.graph.nodes:
        if fx.op != "call_function" or is_symbolic(fx.meta.get("val")) or not is_data(fx):
            continue
        op = op_name(fx)
        path = module_path(fx, wrapper)
        if not isinstance(fx.target, torch._ops.OpOverload) and op != "getitem":
            problems.append(f"{op} in {path or 'the model'}: control flow inside the graph; write it with tensor operations")
            continue
        if is_random(fx, op):
            random[f"{op} in {path or 'the model'}"] += 1
        if fx.all_input_nodes and all(source.name in fixed for source in fx.all_input_nodes):
            fixed.add(fx.name)
        elif base_name(op) in _STATEFUL_NORMS:
            stateful.append(path)
        if base_name(op) == "aten.as_strided":
            problems.append(f"{op} in {path or 'the model'} depends on the layout of memory: write it with view, unfold or slices")
        try:
            shape = shape_of(fx.meta.get("val"))
            fill = filled(fx, op)
            if fill is not None:  # reads only the shape of its input: no dependence on the data
                op, arguments = "aten.full.default", (list(shape or ()), fill)
                options: dict[str, Any] = {"dtype": fx.meta["val"].dtype, "device": DeviceSlot()}
            else:
                arguments, options = encode(fx.args, names), encode(fx.kwargs, names)
        except ValueError as error:
            problems.append(f"{op} in {path or 'the model'}: {error}")
            continue
        nodes.append(
            Node(fx.name, op, arguments, options, Role.ANALOG, shape, label(fx, wrapper), floating=is_floating(fx.meta["val"]))
        )
    if stateful:
        some = ", ".join(stateful[:3]) + (f" and {len(stateful) - 3} more" if len(stateful) > 3 else "")
        problems.append(f"normalisation by batch statistics in {some}: call .eval() on it, or give it running statistics")
    for what, count in random.items():
        times = "" if count == 1 else f" ({count} times)"
        problems.append(f"random operation {what}{times}: the same input must give the same output; remove it or call .eval()")
    returned = [encode(arg, names) for arg in next(n for n in program.graph.nodes if n.op == "output").args[0]]
    outputs, output_problems = _user_structure(program, returned, signature)
    problems += output_problems
    for node in nodes:
        if node.name in set(tree_refs(outputs)):
            value = fx_nodes[node.name].meta["val"]
            if not value.is_floating_point():
                problems.append(f"output {node.op} has dtype {value.dtype}: return the logits, not class numbers")
    graph = Graph(name, tuple(inputs), (), tuple(nodes), outputs, (), params)
    return graph, problems


def _user_structure(program: ExportedProgram, returned: list[Any], signature: Any) -> tuple[Any, list[str]]:
    spec = program.call_spec.out_spec
    assert spec is not None
    offset = len(returned) - spec.num_leaves  # mutated buffers come first
    leaves = returned[offset:]
    outputs = _plain(pytree.tree_unflatten(leaves, spec))
    wrong = [type(leaf).__name__ for leaf in leaves if not isinstance(leaf, Ref)]
    problems = [f"it returns {', '.join(wrong)} beside tensors: return tensors only"] if wrong else []
    if not leaves:
        problems.append("it returns nothing: return a tensor, or a tuple, list or dict of tensors")
    return outputs, problems


def _plain(tree: Any) -> Any:
    """The user's structure in tuples, lists and dicts (named tuples become tuples)."""
    if isinstance(tree, Mapping):
        return {key: _plain(value) for key, value in tree.items()}
    if isinstance(tree, tuple):
        return tuple(_plain(value) for value in tree)
    return [_plain(value) for value in tree] if isinstance(tree, list) else tree
