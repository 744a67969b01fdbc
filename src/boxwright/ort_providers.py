"""What ONNX Runtime's GPU providers are told, and what a graph lets them do.

Names and meanings: ONNX Runtime's pages on the CUDA and the TensorRT execution provider. Options
that Boxwright sets by itself are refused as `--provider-option`, so that nothing is set twice.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boxwright.devices import DeviceChoice
from boxwright.errors import BackendError, RequestError, nearest_name
from boxwright.onnx_fields import read_graph

__all__ = [
    "CUDA",
    "TENSORRT",
    "GraphFacts",
    "Profile",
    "ProviderList",
    "capture_obstacle",
    "check_provider_options",
    "facts_of_graph",
    "gpu_providers",
    "note_on_nms",
    "profile_shapes",
    "wanted_provider",
]

CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
CPU = "CPUExecutionProvider"
Profile = tuple[int, int, int]
ProviderList = list[tuple[str, dict[str, str]]]

_CUDA_OPTIONS = (
    "arena_extend_strategy", "cudnn_conv1d_pad_to_nc1d", "cudnn_conv_algo_search",
    "cudnn_conv_use_max_workspace", "do_copy_in_default_stream", "fuse_conv_bias",
    "gpu_mem_limit", "prefer_nhwc", "sdpa_kernel", "tunable_op_enable",
    "tunable_op_max_tuning_duration_ms", "tunable_op_tuning_enable",
    "use_ep_level_unified_stream", "use_tf32",
)  # fmt: skip
_TENSORRT_OPTIONS = (
    "trt_auxiliary_streams", "trt_build_heuristics_enable", "trt_builder_optimization_level",
    "trt_context_memory_sharing_enable", "trt_detailed_build_log", "trt_dla_core",
    "trt_dla_enable", "trt_engine_cache_prefix", "trt_engine_hw_compatible",
    "trt_extra_plugin_lib_paths", "trt_force_sequential_engine_build", "trt_force_timing_cache",
    "trt_max_partition_iterations", "trt_max_workspace_size", "trt_min_subgraph_size",
    "trt_sparsity_enable", "trt_tactic_sources",
)  # fmt: skip
_OURS = {
    "device_id": "say --device cuda:N",
    "enable_cuda_graph": "say --cuda-graph or --no-cuda-graph",
    "trt_cuda_graph_enable": "say --cuda-graph or --no-cuda-graph",
    "user_compute_stream": "drop it",
    "trt_fp16_enable": "precision is in the graph: export with --precision fp16",
    "trt_bf16_enable": "precision is in the graph",
    "trt_int8_enable": "precision is in the graph: export with --precision int8",
    "trt_engine_cache_enable": "say --engine-cache DIR",
    "trt_engine_cache_path": "say --engine-cache DIR",
    "trt_timing_cache_enable": "say --engine-cache DIR",
    "trt_timing_cache_path": "say --engine-cache DIR",
    "trt_profile_min_shapes": "say --profile-batch MIN,OPT,MAX",
    "trt_profile_opt_shapes": "say --profile-batch MIN,OPT,MAX",
    "trt_profile_max_shapes": "say --profile-batch MIN,OPT,MAX",
}
# Operators whose output sizes the GPU alone knows; the host waits for them, which no capture may.
_DEPENDENT = ("NonMaxSuppression", "NonZero", "Unique", "Compress")
_CONTROL_FLOW = ("If", "Loop", "Scan")
_FEW_CLASSES = 4  # whose steps are lost among the network's own hundreds of launches


@dataclass(frozen=True, slots=True)
class GraphFacts:
    """What the providers' options depend on.

    Attributes:
        operators: Names of all operators, without those of subgraphs.
        inputs: By name, sizes; a text or None where free. Initialisers are left out.
    """

    operators: frozenset[str]
    inputs: Mapping[str, tuple[int | str | None, ...]]

    @property
    def depends_on_data(self) -> bool:
        """Whether sizes inside, and so maybe of outputs, depend on the data."""
        return not self.operators.isdisjoint((*_DEPENDENT, *_CONTROL_FLOW))

    @property
    def quantised(self) -> bool:
        """Whether it carries Q/DQ pairs."""
        return "QuantizeLinear" in self.operators

    @property
    def is_fixed(self) -> bool:
        """Whether every size of every input is."""
        return all(isinstance(d, int) for shape in self.inputs.values() for d in shape)


def facts_of_graph(model: Path | bytes, what: str) -> GraphFacts:
    """Read operators and inputs of a model, without its weights' files.

    Raises:
        BackendError: It is no ONNX model.
    """
    try:
        operators, inputs = read_graph(model)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise BackendError(what, f"it is no ONNX model ({reason})", "check the file") from None
    return GraphFacts(operators, inputs)


def capture_obstacle(facts: GraphFacts, choice: DeviceChoice) -> str:
    """Return why no CUDA graph can be captured, in words; "" where nothing speaks against it.

    A capture that fails leaves its stream unusable, so that it is not tried where it must fail.
    """
    for operator in _DEPENDENT:
        if operator in facts.operators:
            return f"the sizes that {operator} makes depend on the data"
    for operator in _CONTROL_FLOW:
        if operator in facts.operators:
            return f"it has control flow ({operator})"
    if choice.kind == "tensorrt" and not facts.is_fixed:
        return "the TensorRT provider is captured with fixed shapes only"
    return ""


def note_on_nms(operators: Collection[str], classes: int) -> str:
    """Return what speaks against an end-to-end file on the CUDA provider, in one line; or "".

    Its NonMaxSuppression goes through pictures and classes on the host, and waits for the GPU after
    each (ONNX Runtime, core/providers/cuda/object_detection/non_max_suppression.cc).

    Args:
        operators: Of the graph.
        classes: That NMS goes by; 1 where it is agnostic.

    >>> note_on_nms({"NonMaxSuppression"}, 1), note_on_nms({"TopK"}, 80)
    ('', '')
    """
    if "NonMaxSuppression" not in operators or classes <= _FEW_CLASSES:
        return ""
    return (
        f"its NMS is slow on ONNX Runtime's CUDA provider, which waits for the GPU after each of "
        f"{classes} classes of each picture; a file of --nms portable does not"
    )


def wanted_provider(choice: DeviceChoice, available: Sequence[str], what: str) -> str:
    """Return the provider that a device means.

    Raises:
        BackendError: This ONNX Runtime has it not.
    """
    needed = {"cuda": CUDA, "tensorrt": TENSORRT}.get(choice.kind)
    if needed is None:
        return CUDA if choice.kind == "auto" and CUDA in available else CPU
    if needed not in available:
        name = "CUDA" if needed == CUDA else "TensorRT"
        raise BackendError(
            what,
            f"this ONNX Runtime has no {name} provider (it has {', '.join(available)})",
            "install onnxruntime-gpu in place of onnxruntime",
        )
    return needed


def check_provider_options(options: Mapping[str, str], provider: str) -> None:
    """Refuse options that the provider does not know, or that have an option of their own.

    Raises:
        RequestError: One is such.
    """
    known = {
        CUDA: _CUDA_OPTIONS,
        TENSORRT: (*_TENSORRT_OPTIONS, *_CUDA_OPTIONS),
    }.get(provider, ())
    for name, value in options.items():
        asked = f"--provider-option {name}={value}"
        if name in _OURS:
            raise RequestError(asked, "Boxwright sets it", _OURS[name])
        if not known:
            raise RequestError(asked, "it is for GPUs, and the CPU runs this", "drop it")
        if name not in known:
            near = nearest_name(name, known)
            hint = f"did you mean {near}?" if near else f"known are {', '.join(known)}"
            raise RequestError(asked, f"{provider} has no such option", hint)


def profile_shapes(facts: GraphFacts, batch: Profile, what: str) -> dict[str, str]:
    """Return the profile options of the TensorRT provider for a free batch; none where it is fixed.

    Raises:
        RequestError: A size other than the batch is free, or the batches are not in order.

    >>> facts = GraphFacts(frozenset(), {"images": ("batch", 3, 640, 640)})
    >>> profile_shapes(facts, (1, 8, 32), "a.onnx")["trt_profile_opt_shapes"]
    'images:8x3x640x640'
    """
    if not 1 <= batch[0] <= batch[1] <= batch[2]:
        text = ",".join(str(n) for n in batch)
        raise RequestError(
            f"--profile-batch {text}", "it is not smallest, best, largest", "use e.g. 1,8,32"
        )
    free = {n: s for n, s in facts.inputs.items() if any(not isinstance(d, int) for d in s)}
    for name, shape in free.items():
        if any(not isinstance(d, int) for d in shape[1:]):
            sizes = "x".join(str(d) for d in shape)
            raise RequestError(
                what, f"its input {name} is {sizes}, and a profile is of batches",
                "export with --image-size",
            )  # fmt: skip
    if not free:
        return {}
    return {
        f"trt_profile_{word}_shapes": ",".join(
            f"{name}:{'x'.join(str(d) for d in (size, *shape[1:]))}" for name, shape in free.items()
        )
        for word, size in zip(("min", "opt", "max"), batch, strict=True)
    }


def gpu_providers(
    choice: DeviceChoice,
    provider: str,
    facts: GraphFacts,
    *,
    options: Mapping[str, str],
    capture: bool,
    stream: int | None,
    engine_cache: Path | None,
    profile_batch: Profile | None,
    what: str,
) -> ProviderList:
    """Return the providers with their options, in ONNX Runtime's form.

    FP16 is never switched on, since it would change what the graph says. INT8 is what a graph with
    Q/DQ pairs needs of TensorRT before 11, and changes nothing else.

    Args:
        choice, provider: What `wanted_provider` made of the device.
        facts: Of the graph.
        options: Of the user; checked.
        capture: A CUDA graph of each shape.
        stream: Address of the CUDA stream that everything runs on; None leaves it to ONNX Runtime.
        engine_cache: Folder in which TensorRT's engines and timings are kept.
        profile_batch: Smallest, best and largest batch for the TensorRT provider; None is 1.
        what: The file, for errors.

    Raises:
        RequestError: See `profile_shapes`.
    """
    base = {"device_id": str(choice.index)}
    if stream is not None:
        base["user_compute_stream"] = str(stream)
    cuda = {**base, **{k: v for k, v in options.items() if not k.startswith("trt_")}}
    if provider == CUDA:
        return [(CUDA, {**cuda, "enable_cuda_graph": str(int(capture))}), (CPU, {})]
    tensorrt: dict[str, Any] = {
        **base,
        "trt_fp16_enable": "0",
        "trt_int8_enable": str(int(facts.quantised)),
        "trt_cuda_graph_enable": str(int(capture)),
        **profile_shapes(facts, profile_batch or (1, 1, 1), what),
        **{k: v for k, v in options.items() if k.startswith("trt_")},
    }
    if engine_cache is not None:
        for kind in ("engine", "timing"):
            tensorrt[f"trt_{kind}_cache_enable"] = "1"
            tensorrt[f"trt_{kind}_cache_path"] = str(engine_cache)
    return [(TENSORRT, tensorrt), (CUDA, cuda), (CPU, {})]
