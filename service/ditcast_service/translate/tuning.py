"""What is found when cache settings are tuned, as messages."""

from __future__ import annotations

import dataclasses

import yaml

from ditcast.v1 import tuning_pb2 as pb
from ditcast_runtime.settings import Acceleration, CacheSettings, dump_acceleration
from ditcast_service.translate.acceleration import cache_to_proto
from ditcast_service.translate.events import parameters_to_proto, state_number
from ditcast_service.translate.values import duration
from ditcast_service.tuning.figures import Figures, pareto_front, recommended
from ditcast_service.tuning.plan import Plan
from ditcast_service.tuning.sweep import Compared, Finished, Progress


def started(plan: Plan) -> pb.TuneEvent:
    """Say what is going to be measured."""
    return pb.TuneEvent(
        started=pb.TuneStarted(
            parameters=parameters_to_proto(plan.parameters),
            candidates=map(cache_to_proto, plan.candidates),
            target_psnr=plan.target_psnr,
            generations=len(plan.prompts) * (1 + len(plan.candidates)),
        )
    )


def told(found: Progress | Compared) -> pb.TuneEvent:
    """Say how far it is, or how two pictures compare."""
    match found:
        case Progress():
            return pb.TuneEvent(
                progress=pb.TuneProgress(
                    generations_done=found.done,
                    generations_total=found.total,
                    prompt_index=found.prompt,
                    candidate_index=found.candidate,
                    state=state_number(found.moment.state),
                    step=found.moment.step,
                    total_steps=found.moment.total_steps,
                )
            )
        case Compared(comparison=each):
            return pb.TuneEvent(
                comparison=pb.TuneComparison(
                    candidate_index=each.candidate,
                    prompt_index=each.prompt,
                    psnr=each.psnr,
                    ssim=each.ssim,
                    cached_steps=each.cached_steps,
                    total_steps=each.total_steps,
                    denoise=duration(each.seconds),
                    uncached_denoise=duration(each.uncached_seconds),
                    time_ratio=each.time_ratio,
                    dropped=found.dropped,
                )
            )


def completed(plan: Plan, finished: Finished) -> pb.TuneEvent:
    """Say what came of it."""
    front = pareto_front(finished.figures)
    best = recommended(finished.figures, plan.target_psnr)
    return pb.TuneEvent(
        completed=pb.TuneCompleted(
            candidates=(
                _figures(each, plan.candidates[each.candidate], on_front=each.candidate in front)
                for each in finished.figures
            ),
            recommended_index=best,
            cache_dit_yaml="" if best is None else cache_dit_yaml(plan.candidates[best]),
            uncached_denoise=duration(finished.uncached_seconds),
        )
    )


def cache_dit_yaml(cache: CacheSettings) -> str:
    """Write cache settings as a file in cache-dit's own format."""
    document = dump_acceleration(Acceleration(cache=cache))
    return yaml.safe_dump(document, sort_keys=False)


def _figures(found: Figures, cache: CacheSettings, *, on_front: bool) -> pb.TuneFigures:
    values = dataclasses.asdict(found)
    return pb.TuneFigures(
        candidate_index=values.pop("candidate"),
        cache=cache_to_proto(cache),
        on_pareto_front=on_front,
        **values,
    )
