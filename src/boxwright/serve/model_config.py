"""Configurations of served models: records to Triton's protobuf, and its text form.

Text is never put together by hand: the protobuf writes it, and reads it back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from boxwright.errors import MissingExtraError, SourceError
from boxwright.types import TensorInfo

__all__ = [
    "Accelerator",
    "Batching",
    "Instances",
    "ServedModel",
    "Step",
    "Tensor",
    "VersionPolicy",
    "WarmUp",
    "config_from_text",
    "config_message",
    "policy_text",
    "text_from_config",
    "triton_dtype",
]

Message: TypeAlias = Any  # tritonclient's ModelConfig has no types
_DTYPES = {
    "float32": "TYPE_FP32", "float16": "TYPE_FP16", "int32": "TYPE_INT32", "int64": "TYPE_INT64",
    "uint8": "TYPE_UINT8", "bool": "TYPE_BOOL",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output without its batch.

    Attributes:
        name: Of the tensor.
        dtype: Triton's, e.g. `TYPE_FP32`.
        dims: -1 where a size is free.
        ragged: Requests of several sizes go into one batch.
        optional: An input that a request may leave out.
        labels: File of class names, or "".
    """

    name: str
    dtype: str
    dims: tuple[int, ...]
    ragged: bool = False
    optional: bool = False
    labels: str = ""


@dataclass(frozen=True, slots=True)
class Batching:
    """How requests wait and are put together.

    Attributes:
        delay_us: How long a batch waits to become fuller.
        queue_size: Requests that may wait; those beyond are refused.
        timeout_ms: Requests that waited so long are refused.
    """

    delay_us: int = 0
    queue_size: int = 1024
    timeout_ms: int = 30_000


@dataclass(frozen=True, slots=True)
class Instances:
    """How many copies of a model run, and where."""

    kind: Literal["KIND_GPU", "KIND_CPU", "KIND_AUTO"]
    count: int = 1


@dataclass(frozen=True, slots=True)
class WarmUp:
    """A request that is run before the first one of a client.

    Attributes:
        name: Of the sample.
        batch: Pictures in it.
        inputs: By input, dtype, dims and the file in `warmup/` (None: zeros).
    """

    name: str
    batch: int
    inputs: Mapping[str, tuple[str, tuple[int, ...], str | None]]


@dataclass(frozen=True, slots=True)
class Step:
    """One model of an ensemble: whose inputs and outputs are which tensors of the ensemble."""

    model: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Accelerator:
    """ONNX Runtime's TensorRT provider, as its Triton backend takes it."""

    parameters: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class VersionPolicy:
    """Which versions are served: certain ones, the latest ones, or all (both empty)."""

    specific: tuple[int, ...] = ()
    latest: int = 0


@dataclass(frozen=True, slots=True)
class ServedModel:
    """Everything that a configuration says.

    Attributes:
        name: Of the model and its folder.
        backend: `onnxruntime`, `tensorrt`, `dali`, `python`, or `ensemble`.
        max_batch: Largest batch.
        inputs, outputs: Without the batch.
        instances: None for ensembles.
        batching: None for ensembles.
        steps: Of an ensemble.
        parameters: Text by name.
        warm_up: Samples.
        accelerator: For `onnxruntime`.
        policy: Which versions are served.
        cache: Answers to equal requests are kept.
    """

    name: str
    backend: str
    max_batch: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    instances: Instances | None = None
    batching: Batching | None = None
    steps: tuple[Step, ...] = ()
    parameters: Mapping[str, str] = field(default_factory=dict)
    warm_up: tuple[WarmUp, ...] = ()
    accelerator: Accelerator | None = None
    policy: VersionPolicy = field(default_factory=VersionPolicy)
    cache: bool = False


def triton_dtype(info: TensorInfo, what: str) -> str:
    """Return Triton's name of a tensor's dtype.

    Raises:
        SourceError: Triton, or we, know none.
    """
    if info.dtype not in _DTYPES:
        raise SourceError(
            what, f"tensor {info.name} is of {info.dtype}", f"known are {', '.join(_DTYPES)}"
        )
    return _DTYPES[info.dtype]


def _protobuf() -> Any:
    """Return tritonclient's module of the configuration's protobuf.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        from tritonclient.grpc import model_config_pb2
    except ImportError:
        raise MissingExtraError("Triton's configuration (tritonclient)", "triton") from None
    return model_config_pb2


def config_message(model: ServedModel) -> Message:
    """Return the protobuf of a configuration.

    Raises:
        MissingExtraError: tritonclient is not installed.
    """
    pb = _protobuf()
    config = pb.ModelConfig(name=model.name, max_batch_size=model.max_batch)
    if model.backend == "ensemble":
        config.platform = "ensemble"
    else:
        config.backend = model.backend
    for tensor in model.inputs:
        config.input.add(
            name=tensor.name,
            data_type=pb.DataType.Value(tensor.dtype),
            dims=tensor.dims,
            allow_ragged_batch=tensor.ragged,
            optional=tensor.optional,
        )
    for tensor in model.outputs:
        config.output.add(
            name=tensor.name,
            data_type=pb.DataType.Value(tensor.dtype),
            dims=tensor.dims,
            label_filename=tensor.labels,
        )
    if model.instances is not None:
        kind = pb.ModelInstanceGroup.Kind.Value(model.instances.kind)
        config.instance_group.add(kind=kind, count=model.instances.count)
    if model.batching is not None:
        _add_batching(pb, config, model.batching)
    for step in model.steps:
        added = config.ensemble_scheduling.step.add(model_name=step.model, model_version=-1)
        added.input_map.update(step.inputs)
        added.output_map.update(step.outputs)
    _add_policy(config, model.policy)
    for name, value in model.parameters.items():
        config.parameters[name].string_value = value
    for sample in model.warm_up:
        _add_warm_up(pb, config, sample)
    if model.accelerator is not None:
        added = config.optimization.execution_accelerators.gpu_execution_accelerator.add()
        added.name = "tensorrt"
        added.parameters.update(model.accelerator.parameters)
    if model.cache:
        config.response_cache.enable = True
    return config


def _add_batching(pb: Any, config: Message, batching: Batching) -> None:
    dynamic = config.dynamic_batching
    dynamic.max_queue_delay_microseconds = batching.delay_us
    policy = dynamic.default_queue_policy
    policy.timeout_action = pb.ModelQueuePolicy.TimeoutAction.Value("REJECT")
    policy.default_timeout_microseconds = batching.timeout_ms * 1000
    policy.allow_timeout_override = True
    policy.max_queue_size = batching.queue_size


def _add_policy(config: Message, policy: VersionPolicy) -> None:
    if policy.specific:
        config.version_policy.specific.versions.extend(policy.specific)
    elif policy.latest:
        config.version_policy.latest.num_versions = policy.latest
    else:
        config.version_policy.all.SetInParent()


def _add_warm_up(pb: Any, config: Message, sample: WarmUp) -> None:
    added = config.model_warmup.add(name=sample.name, batch_size=sample.batch)
    for name, (dtype, dims, file) in sample.inputs.items():
        value = added.inputs[name]
        value.data_type = pb.DataType.Value(dtype)
        value.dims.extend(dims)
        if file is None:
            value.zero_data = True
        else:
            value.input_data_file = file


def text_from_config(config: Message) -> str:
    """Return the text form of a configuration, as `config.pbtxt` holds it.

    Maps are sorted, so that equal configurations are equal texts.
    """
    from google.protobuf import text_format

    return str(text_format.MessageToString(config, as_utf8=True))


def policy_text(policy: VersionPolicy) -> str:
    """Return the block `version_policy { … }` of a configuration."""
    config = _protobuf().ModelConfig()
    _add_policy(config, policy)
    return text_from_config(config)


def config_from_text(text: str, what: str) -> Message:
    """Read the text form of a configuration.

    Raises:
        SourceError: It holds an unknown field or value, or is no text form.
        MissingExtraError: tritonclient is not installed.
    """
    pb = _protobuf()
    from google.protobuf import text_format

    try:
        return text_format.Parse(text, pb.ModelConfig())
    except text_format.ParseError as error:
        raise SourceError(
            what, f"it is no configuration of Triton ({str(error)[:160]})", "mend it"
        ) from None
