"""What happened to a generation, as the events of its stream."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from typing import assert_never

from ditcast.v1 import generation_pb2 as pb
from ditcast_runtime import events
from ditcast_runtime.generation import ImageUse, OutputOptions, Parameters, Receipt, State
from ditcast_runtime.summary import Summary
from ditcast_service.translate.acceleration import (
    cache_to_proto,
    configuration_to_proto,
    parallelism_to_proto,
)
from ditcast_service.translate.values import duration, struct, to_number


def event_to_proto(request_id: str, event: events.Event) -> pb.GenerationEvent:
    """Give one entry of the log of the generation with this id."""
    message = pb.GenerationEvent(request_id=request_id, sequence=event.sequence)
    message.time.FromDatetime(event.time)
    kind = event.kind
    match kind:
        case events.Queued():
            message.queued.CopyFrom(_queued(kind))
        case events.Started():
            message.started.CopyFrom(started(kind))
        case events.StepCompleted():
            message.step_completed.CopyFrom(_step(kind))
        case events.Preview():
            message.preview.CopyFrom(pb.Preview(**dataclasses.asdict(kind)))
        case events.RequestWarning():
            message.warning.CopyFrom(pb.Warning(field=kind.field, message=kind.message))
        case events.Restarted():
            message.restarted.CopyFrom(pb.Restarted(**dataclasses.asdict(kind)))
        case events.OutputChunk():
            message.output_chunk.CopyFrom(_chunk(kind))
        case events.Completed():
            message.completed.CopyFrom(_completed(kind))
        case _:
            assert_never(kind)
    return message


def heartbeat(request_id: str, sequence: int, state: State) -> pb.GenerationEvent:
    """Give a sign of life; it repeats the last sequence."""
    message = pb.GenerationEvent(request_id=request_id, sequence=sequence)
    message.time.FromDatetime(datetime.now(UTC))
    message.heartbeat.state = state_number(state)
    return message


def state_number(state: State) -> pb.GenerationState.ValueType:
    """Give a state as the contract numbers it."""
    return pb.GenerationState.Value(f"GENERATION_STATE_{state.name}")


def summary_to_proto(summary: Summary) -> pb.GenerationSummary:
    """Give one generation of a list."""
    message = pb.GenerationSummary(
        request_id=summary.request_id,
        state=state_number(summary.state),
        priority=pb.Priority.Value(f"PRIORITY_{summary.priority.name}"),
        step=summary.step,
        total_steps=summary.total_steps,
        attempt=summary.attempt,
        position=summary.position,
        configuration_revision=summary.revision,
        readers=summary.readers,
    )
    times = {
        "create_time": summary.created_at,
        "start_time": summary.started_at,
        "end_time": summary.ended_at,
        "expire_time": summary.expires_at,
    }
    for name, time in times.items():
        if time is not None:
            getattr(message, name).FromDatetime(time)
    return message


def started(event: events.Started) -> pb.Started:
    """Give what a generation was settled to; all that `validate_only` answers."""
    return pb.Started(
        parameters=parameters_to_proto(event.parameters),
        configuration_revision=event.configuration_revision,
        world_size=event.world_size,
        epoch=event.epoch,
        batch_size=event.batch_size,
    )


def parameters_to_proto(parameters: Parameters) -> pb.ResolvedParameters:
    """Give every settled value."""
    return pb.ResolvedParameters(
        prompt=parameters.prompt,
        negative_prompt=parameters.negative_prompt,
        width=parameters.width,
        height=parameters.height,
        num_inference_steps=parameters.num_inference_steps,
        guidance_scale=parameters.guidance_scale,
        true_cfg_scale=parameters.true_cfg_scale,
        seed=parameters.seed,
        num_images=parameters.num_images,
        sigmas=parameters.sigmas,
        pipeline_kwargs=struct(parameters.pipeline_kwargs),
        output=_output(parameters.output),
        cache=cache_to_proto(parameters.cache),
        num_frames=parameters.num_frames,
        fps=parameters.fps,
        images=[_image(use) for use in parameters.images],
        adapters=[pb.AdapterUse(**dataclasses.asdict(use)) for use in parameters.adapters],
    )


def _image(use: ImageUse) -> pb.InputImageDigest:
    number = to_number(pb.InputImageRole.DESCRIPTOR, use.role)
    return pb.InputImageDigest(
        role=pb.InputImageRole.ValueType(number),
        parameter=use.parameter,
        width=use.width,
        height=use.height,
        size_bytes=use.size_bytes,
        sha256=use.sha256,
    )


def _output(options: OutputOptions) -> pb.OutputOptions:
    number = to_number(pb.OutputFormat.DESCRIPTOR, options.format)
    message = pb.OutputOptions(format=pb.OutputFormat.ValueType(number))
    if options.format in ("jpeg", "webp", "mp4"):
        message.quality = options.quality
    return message


def _queued(event: events.Queued) -> pb.Queued:
    message = pb.Queued(position=event.position)
    if event.estimated_wait is not None:
        message.estimated_wait.CopyFrom(duration(event.estimated_wait))
    return message


def _decision(decision: events.CacheDecision) -> pb.CacheDecision.ValueType:
    return pb.CacheDecision.Value(f"CACHE_DECISION_{decision.name}")


def _transformer(row: events.TransformerDecision) -> pb.TransformerDecision:
    return pb.TransformerDecision(
        name=row.name,
        cache_decision=_decision(row.decision),
        residual_diff=row.residual_diff,
        cfg_cache_decision=None if row.cfg_decision is None else _decision(row.cfg_decision),
        cfg_residual_diff=row.cfg_residual_diff,
    )


def _step(event: events.StepCompleted) -> pb.StepCompleted:
    message = pb.StepCompleted(
        step=event.step,
        total_steps=event.total_steps,
        timestep=event.timestep,
        sigma=event.sigma,
        step_duration=duration(event.step_duration),
        estimated_remaining=duration(event.estimated_remaining),
        cache_decision=pb.CACHE_DECISION_COMPUTED,
    )
    rows = [_transformer(row) for row in event.transformers]
    if rows:
        main = rows[0]
        message.cache_decision = main.cache_decision
        for name in ("residual_diff", "cfg_cache_decision", "cfg_residual_diff"):
            if main.HasField(name):
                setattr(message, name, getattr(main, name))
    if len(rows) > 1:
        message.transformers.extend(rows)
    return message


def _chunk(event: events.OutputChunk) -> pb.OutputChunk:
    return pb.OutputChunk(
        output_index=event.output_index,
        media_type=event.media_type,
        total_bytes=event.total_bytes,
        offset=event.offset,
        data=bytes(event.data),
    )


def _completed(event: events.Completed) -> pb.Completed:
    reports = [pb.TransformerCacheReport(**dataclasses.asdict(row)) for row in event.cache]
    cache = pb.CacheReport(transformers=reports)
    if event.cache:
        main = dataclasses.asdict(event.cache[0])
        del main["name"]
        cache.MergeFrom(pb.CacheReport(**main))
    seconds = dataclasses.asdict(event.timings)
    return pb.Completed(
        receipt=_receipt(event.receipt),
        timings=pb.Timings(**{name: duration(value) for name, value in seconds.items()}),
        cache=cache,
        memory=[pb.RankMemory(**dataclasses.asdict(row)) for row in event.memory],
        shadow=None if event.shadow is None else _shadow(event.shadow),
    )


def _shadow(found: events.ShadowComparison) -> pb.ShadowComparison:
    return pb.ShadowComparison(
        outputs=[pb.OutputLikeness(**dataclasses.asdict(each)) for each in found.outputs],
        uncached_denoise=duration(found.uncached_denoise),
        time_ratio=found.time_ratio,
    )


def _receipt(receipt: Receipt) -> pb.Receipt:
    return pb.Receipt(
        parameters=parameters_to_proto(receipt.parameters),
        model_id=receipt.model_id,
        model_revision=receipt.model_revision,
        weights_digest=receipt.weights_digest,
        library_versions=receipt.library_versions,
        world_size=receipt.world_size,
        parallelism=parallelism_to_proto(receipt.configuration.parallelism),
        threads_per_rank=receipt.threads_per_rank,
        device=receipt.device,
        dtype=receipt.dtype,
        configuration_revision=receipt.configuration.revision,
        configuration=configuration_to_proto(receipt.configuration),
        sigmas_used=receipt.sigmas_used,
        outputs=[pb.OutputDigest(**dataclasses.asdict(row)) for row in receipt.outputs],
        deterministic=receipt.deterministic,
        group=receipt.group,
        batch_size=receipt.batch_size,
    )
