"""Choose how a stage runs: micro-batch, strategy, recomputed blocks; the fastest that fits, then the least changed."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace

from rigfit.errors import DoesNotFitError
from rigfit.hardware.rig import Rig
from rigfit.planning.choice import Choice
from rigfit.planning.costs import Costs, PaperCosts, Prices, takes_batch_statistics
from rigfit.planning.layout import SPEED_TOLERANCE, accepted_sizes, derive_layout, list_candidates, savings_of
from rigfit.planning.memory.limit import limit_of
from rigfit.planning.memory.recompute import block_spans, choose_blocks
from rigfit.planning.mixed import share_odd_batch, share_over_mixed
from rigfit.planning.plan import Candidate, Source
from rigfit.planning.variant import Recomputed, Variant
from rigfit.planning.ways import explain_failure
from rigfit.workload import MIXING, WorkloadConfig

# Recomputing everything costs about a third of forward and backward: where the plain way already reaches this share of
# the speed of the largest micro-batch, no recomputation can win.
_NEVER_BEATEN_FROM = 0.8

_MOST_CORRECTIONS = 3


class NothingFitsError(DoesNotFitError):
    """No way of running a stage fits; with all that was weighed, and the bytes a rank may use."""

    def __init__(self, last: DoesNotFitError, candidates: tuple[Candidate, ...], limit_bytes: int) -> None:
        super().__init__(last.cause, last.remedy)
        self.candidates = candidates
        self.limit_bytes = limit_bytes

    @property
    def least(self) -> Candidate | None:
        """Of what was refused for memory, the way that needs the fewest bytes."""
        known = [candidate for candidate in self.candidates if candidate.is_too_large]
        return min(known, key=lambda candidate: candidate.predicted_upper_bytes or 0, default=None)


def search(config: WorkloadConfig, rig: Rig, prices: Prices | None) -> Choice:
    """Return the fastest way that fits; among equally fast ones the one with the fewest departures from what was asked.

    Variants are tried in the order of their departures: as asked, some blocks recomputed, all of them, sharded. What a
    person set stays. The chosen way is read once more at its very micro-batch, and given up if it does not fit there.

    Raises:
        UsageError, DoesNotFitError: See `derive_layout`; nothing fits in any variant.
    """
    searched = _Search(config, rig, prices)
    if config.effective_batch_size % rig.world_size:
        shared = share_odd_batch(config, rig, prices, searched.variants())
        if shared is not None:
            return shared
    refusals: list[DoesNotFitError] = []
    best: Choice | None = None
    for variant in searched.variants():
        if best is not None and not searched.could_beat(best):
            break
        try:
            found = searched.settle(variant)
        except DoesNotFitError as error:
            refusals.append(error)
            continue
        if best is None or _speed(found) > _speed(best) * (1 + SPEED_TOLERANCE):
            best = found
    if best is None:
        raise NothingFitsError(
            searched.refusal(refusals), _of_the_pinned_size(config, searched.weighed), searched.limit
        )
    best = share_over_mixed(config, rig, prices, best) or best
    return replace(best, candidates=tuple(searched.weighed))


def _of_the_pinned_size(config: WorkloadConfig, weighed: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Return what was weighed at the micro-batch that a person pinned; all of it where none is pinned."""
    pinned = config.micro_batch_size
    return tuple(candidate for candidate in weighed if pinned in (None, candidate.micro_batch_size))


def _speed(choice: Choice) -> float:
    if choice.costs is None:
        return 0.0
    return choice.costs.samples_per_second(choice.layout.largest_micro_batch)


class _Search:
    """The search of one stage: what is asked, and all candidates seen so far."""

    def __init__(self, config: WorkloadConfig, rig: Rig, prices: Prices | None) -> None:
        self.config = config
        self.rig = rig
        self.prices = prices
        self.limit = limit_of(config, rig)
        self.weighed: list[Candidate] = []

    def variants(self) -> Sequence[Variant]:
        """Return what may be tried, fewest departures first."""
        asked = self.config.strategy or "ddp"
        recomputed: list[Recomputed] = ["all" if self.config.activation_checkpointing else "none"]
        strategies = [asked]
        is_open = self.prices is not None and isinstance(self.prices.costs(_first(self.config)), PaperCosts)
        may_shard = self.config.strategy is None and self.config.optimizer not in ("adamw8bit", "lars")
        if is_open and may_shard and self.rig.world_size > 1 and self.rig.kind == "cuda":
            strategies.append("fully_shard")
        if is_open and self.config.activation_checkpointing is None and self.prices and self.prices.num_blocks:
            recomputed += [(), "all"]  # () stands for as few blocks as needed
        return [Variant(strategy=strategy, recomputed=some) for strategy in strategies for some in recomputed]

    def could_beat(self, best: Choice) -> bool:
        """Return whether a variant with more departures may be faster than `best`."""
        if not isinstance(best.costs, PaperCosts) or best.costs.clock is None:
            return False
        lines = None if self.prices is None else self.prices.costs(best.variant)
        if not isinstance(lines, PaperCosts):  # `best` holds at its own micro-batch alone
            return False
        return _speed(best) < lines.samples_per_second(lines.share) * _NEVER_BEATEN_FROM

    def refusal(self, refusals: Sequence[DoesNotFitError]) -> DoesNotFitError:
        """Return why nothing fits: of the variant that needs least, with ways out; else what was said last."""
        share, pinned = self.config.effective_batch_size // self.rig.world_size, self.config.micro_batch_size
        dividing = [size for size in accepted_sizes(self.config, self.rig) if share % size == 0]
        sizes = [size for size in dividing if pinned in (None, size)]
        if self.prices is None or not sizes:
            return refusals[-1]
        asked = [variant for variant in self.variants() if variant.recomputed != ()]
        known = [costs for costs in map(self.prices.costs, asked) if isinstance(costs, PaperCosts)]
        if not known:
            return refusals[-1]
        # Not always the smallest: one that takes the whole share at once keeps no gradients between passes.
        needs = [(costs.upper_bytes(size), number, size) for number, costs in enumerate(known) for size in sizes]
        needed, number, size = min(needs)
        if needed <= self.limit:  # it would fit, but for another batch: that was said
            return refusals[-1]
        below = [(one, min(costs.upper_bytes(one) for costs in known)) for one in dividing if one < size]
        smaller = [(one, needed) for one, needed in below if needed <= self.limit]
        return explain_failure(
            self.config,
            self.rig,
            known[number],
            size,
            self.limit,
            recomputed=self._recomputed_against_a_pin(),
            smaller_pin=smaller[-1] if pinned is not None and smaller else None,
        )

    def _recomputed_against_a_pin(self) -> PaperCosts | None:
        """Return the costs with all blocks recomputed where a person forbade that, and there are blocks."""
        if self.prices is None or self.config.activation_checkpointing is not False or not self.prices.num_blocks:
            return None
        costs = self.prices.costs(Variant(strategy=self.config.strategy or "ddp", recomputed="all"))
        return costs if isinstance(costs, PaperCosts) else None

    def settle(self, variant: Variant) -> Choice:
        """Return the best layout of a variant, confirmed at its own micro-batch.

        Raises:
            DoesNotFitError: No micro-batch fits.
        """
        if variant.recomputed == ():
            return self._settle_some(variant)
        costs = None if self.prices is None else self.prices.costs(variant)
        choice = self._derive(variant, costs)
        for _ in range(_MOST_CORRECTIONS):
            exact = self._exact(choice)
            if exact is None or exact.upper_bytes(choice.layout.largest_micro_batch) <= self.limit:
                return choice if exact is None else replace(choice, costs=exact)
            choice = self._derive(variant, _Corrected(exact, choice))
        raise DoesNotFitError(
            f"A micro-batch of {choice.layout.largest_micro_batch} that should have fitted did not when it was read "
            "again at that size.",
            f"Pin a smaller one: micro_batch_size={max(1, choice.layout.largest_micro_batch // 2)}.",
        )

    def _derive(self, variant: Variant, costs: Costs | None) -> Choice:
        common = {
            "memory_limit": self.limit,
            "refusal": self.config.refusal,
            "kind": self.rig.kind,
            "variant": variant,
            "profile": costs,
        }
        effective, ranks = self.config.effective_batch_size, self.rig.world_size
        if effective % ranks == 0:
            self.weighed += list_candidates(effective, ranks, **common)  # type: ignore[arg-type]
        layout, source = derive_layout(
            effective,
            ranks,
            micro_batch_size=self.config.micro_batch_size,
            savings=savings_of(self.config, ranks, self.rig.kind),
            prefers_large=bool(MIXING & self.config.couplings) or takes_batch_statistics(costs),
            **common,  # type: ignore[arg-type]
        )
        return Choice(variant=variant, layout=layout, layout_source=source, costs=costs, candidates=())

    def _exact(self, choice: Choice) -> Costs | None:
        """Return the costs at the chosen micro-batch itself, or None where there is nothing to read again."""
        if self.prices is None or not isinstance(choice.costs, PaperCosts | _Corrected):
            return None
        return self.prices.costs(choice.variant, exact_at=choice.layout.largest_micro_batch)

    def _settle_some(self, variant: Variant) -> Choice:
        """Return the fastest pair of a micro-batch and as few recomputed blocks as let it fit.

        Which blocks is reckoned from the trace without recomputation; what it comes to is read from a trace with it.
        """
        plain = None if self.prices is None else self.prices.costs(replace(variant, recomputed="none"))
        if not isinstance(plain, PaperCosts):
            raise DoesNotFitError("Nothing is known about the blocks of this task.", "")
        options = self._partial_options(plain)
        refusal = DoesNotFitError("Recomputing some blocks does not make any micro-batch fit.", "")
        for size, blocks in options:
            pinned = self.config.model_copy(update={"micro_batch_size": size})
            inner = _Search(pinned, self.rig, self.prices)
            try:
                choice = inner.settle(Variant(strategy=variant.strategy, recomputed=blocks))
            except DoesNotFitError as error:
                refusal = error
                continue
            self.weighed += [candidate for candidate in inner.weighed if candidate.micro_batch_size == size]
            source = choice.layout_source if self.config.micro_batch_size else Source.ESTIMATED
            return replace(choice, layout_source=source)
        raise refusal

    def _partial_options(self, plain: PaperCosts) -> list[tuple[int, tuple[int, ...]]]:
        """Return (micro-batch, blocks to recompute), fastest first; at most a few, for each is read on paper."""
        sizes = [
            candidate.micro_batch_size
            for candidate in list_candidates(
                self.config.effective_batch_size,
                self.rig.world_size,
                profile=None,
                memory_limit=self.limit,
                refusal=self.config.refusal,
                kind=self.rig.kind,
            )
            if candidate.refusal is None and self.config.micro_batch_size in (None, candidate.micro_batch_size)
        ]
        options: list[tuple[float, int, tuple[int, ...]]] = []
        for size in sizes:
            found = self._blocks_for(plain, size)
            if found is not None:
                blocks, seconds_per_sample = found
                options.append((seconds_per_sample, -size, blocks))
        options.sort()
        return [(-size, blocks) for _, size, blocks in options[:_MOST_CORRECTIONS]]

    def _blocks_for(self, plain: PaperCosts, size: int) -> tuple[tuple[int, ...], float] | None:
        """Return the blocks whose recomputation lets `size` fit, and seconds per sample; None if all do not."""
        trace = plain.whole_trace(size)
        seconds = plain.clock.block_seconds(trace, size) if plain.clock else (1.0,) * len(trace.blocks)
        excess = plain.peak_bytes(size) - plain.workspaces.margin.below(self.limit)
        blocks = choose_blocks(trace, size, block_spans(trace, size), seconds, excess)
        if not blocks:
            return None
        speed = plain.samples_per_second(size)
        extra = sum(seconds[number] for number in blocks) / size
        return blocks, (1 / speed if speed else 0.0) + extra


class _Corrected:
    """Costs of a variant with the error that was seen when it was read at one size added everywhere."""

    def __init__(self, exact: Costs, choice: Choice) -> None:
        size = choice.layout.largest_micro_batch
        assert choice.costs is not None
        self._costs = choice.costs
        self._ratio = max(1.0, exact.upper_bytes(size) / max(1, choice.costs.upper_bytes(size)))
        self.source, self.smallest_measured = choice.costs.source, choice.costs.smallest_measured
        self.model = choice.costs.model

    def for_share(self, share: int) -> _Corrected:
        other = copy(self)
        other._costs = self._costs.for_share(share)
        return other

    def peak_bytes(self, micro_batch_size: int) -> int:
        return round(self._costs.peak_bytes(micro_batch_size) * self._ratio)

    def upper_bytes(self, micro_batch_size: int) -> int:
        return round(self._costs.upper_bytes(micro_batch_size) * self._ratio)

    def samples_per_second(self, micro_batch_size: int) -> float:
        return self._costs.samples_per_second(micro_batch_size)


def _first(config: WorkloadConfig) -> Variant:
    recomputed: Recomputed = "all" if config.activation_checkpointing else "none"
    return Variant(strategy=config.strategy or "ddp", recomputed=recomputed)
