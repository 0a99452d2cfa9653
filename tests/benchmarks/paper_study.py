"""All of docs/paper.md in one folder: what is to be done, in which order, and what is chosen on the way."""

from __future__ import annotations

import itertools
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from paper_forms import Form, Start, block_terms, outline
from paper_records import WAIT, BusyError, Measured, MissingError, Noisy
from paper_runs import Choice, Model, Run
from paper_settings import Settings, SizeName, Tasks

from btcompress.demo import Noise, rivals
from btcompress.demo.rivals import target_shape
from btcompress.errors import BTCompressError
from btcompress.finetune import Epoch
from btcompress.modes import ShapeRequest

Study = Literal["main", "noise", "ranks", "orders"]
STUDIES: tuple[Study, ...] = ("main", "noise", "ranks", "orders")
#: By what they are asked for.
FORMS = {form.name.replace(" ", "-"): form for form in rivals.FORMS}
#: The seed on which learning rates are searched.
SEARCH_SEED = 0

Tell = Callable[[Study, Measured | Noisy], None]


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked for.

    Attributes:
        tasks: their names.
        sizes: their names.
        seeds: of data and trainings.
        forms: beside the dense one.
        studies: which of them.
        ranks_of: tasks and sizes, ``task-size``, whose ranks are tried.
    """

    tasks: Sequence[str]
    sizes: Sequence[SizeName]
    seeds: Sequence[int]
    forms: Sequence[str]
    studies: Sequence[Study]
    ranks_of: Sequence[str]


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """A piece of the work, which may be put off while another process is at the same.

    Attributes:
        run: that it belongs to.
        do: does it.
    """

    run: Run
    do: Callable[[], None]


class Paper:
    """All tasks, sizes and seeds of one folder.

    Args:
        folder: of all files.
        settings: what is trained, and how.
        tasks: by size and name.
        tell: called with what is known of each model.
        on_epoch: called after each epoch of a training.
        making: whether what is missing is made; else what there is, is told.
    """

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        tasks: Tasks,
        tell: Tell,
        on_epoch: Callable[[str, Epoch], None],
        *,
        making: bool = True,
    ) -> None:
        self.folder, self.settings, self.tasks, self.tell, self.on_epoch = folder, settings, tasks, tell, on_epoch
        self.making = making
        self._runs: dict[tuple[str, SizeName, int], Run] = {}

    def run(self, task: str, size: SizeName, seed: int) -> Run:
        """The run of a task, a size and a seed."""
        key = (task, size, seed)
        if key not in self._runs:
            folder = self.folder / f"{task}-{size}-{seed}"
            self._runs[key] = Run(self.tasks[size][task], size, seed, folder, self.on_epoch, making=self.making)
        return self._runs[key]

    def do(self, asked: Asked) -> list[str]:
        """Do what is asked for and not done; what another process is at is put off.

        Returns:
            What could not be done, and why.
        """
        left, failures = list(self.items(asked)), []
        while left:
            for item in left:
                self._close_all_but(item.run)
                try:
                    item.do()
                except BusyError:
                    continue
                except MissingError:
                    pass
                except Exception as error:  # a night's work does not end with one model
                    if not isinstance(error, BTCompressError):
                        traceback.print_exc()
                    failures.append(f"{item.run.folder.name}: {error or type(error).__name__}")
                # Begin again with what matters most of the rest.
                left.remove(item)
                break
            else:
                time.sleep(WAIT)
        self._close_all_but(None)
        return failures

    def _close_all_but(self, run: Run | None) -> None:
        for each in self._runs.values():
            if each is not run:
                each.close()

    def items(self, asked: Asked) -> Iterator[Item]:
        """The work, in the order in which it matters: small tasks, then the large ones seed by seed, then the rest."""
        every = itertools.product(("small", "full"), asked.seeds, asked.tasks)
        runs = [
            self.run(task, size, seed) for size, seed, task in every if size in asked.sizes and task in self.tasks[size]
        ]
        first = [run for run in runs if run.size == "small" or run.seed == asked.seeds[0]]
        for some in (first, [run for run in runs if run not in first]):
            for run in some:
                yield from self._main_and_noise(run, asked)
            for run in some:
                name = f"{run.task.name}-{run.size}"
                if "ranks" in asked.studies and name in asked.ranks_of:
                    yield from self._each(run, "ranks", self._ranks(run))
                if "orders" in asked.studies and name == self.settings.orders_of:
                    yield from self._each(run, "orders", self._orders(run))

    def _main_and_noise(self, run: Run, asked: Asked) -> Iterator[Item]:
        forms: list[Form] = [Form(), *self._forms(run, asked.forms)]
        if "main" in asked.studies:
            yield from self._each(run, "main", forms)
        if "noise" in asked.studies:
            for noise in self.settings.noises:
                yield Item(run, lambda noise=noise: self._noise(run, forms, noise))

    def _each(self, run: Run, study: Study, forms: Sequence[Form]) -> Iterator[Item]:
        for form in forms:
            for start in form.starts:
                yield Item(run, lambda form=form, start=start: self._measure(run, study, form, start))

    def _forms(self, run: Run, names: Sequence[str]) -> list[Form]:
        target = block_terms(run.task).target
        return [Form.of(form, target) for name, form in FORMS.items() if name in names and target is not None]

    def _ranks(self, run: Run) -> list[Form]:
        target = block_terms(run.task).target
        if target is None:
            return []
        modes = {"in_modes": target.in_modes, "out_modes": target.out_modes}
        return [_of_ranks(run, f"N={n} R={r}", ShapeRequest(n, r, **modes)) for n, r in self.settings.ranks]

    def _orders(self, run: Run) -> list[Form]:
        forms = []
        for each in self.settings.orders:
            request = ShapeRequest(*self.settings.order_ranks, each.in_modes, each.out_modes)
            form = _of_ranks(run, f"d={len(each.in_modes)}", request)
            if form.target is None or form.target.n_params != each.n_params:
                raise BTCompressError(f"{form} was published to have {each.n_params} parameters.")
            forms.append(form)
        return forms

    def _measure(self, run: Run, study: Study, form: Form, start: Start) -> None:
        run.dense = self.dense_choice(run)
        is_trained = self._is_trained(run, form)
        choice = self._choice(run, study, form, start) if is_trained else run.dense
        model = Model(form, start, choice)
        if start == "dense model":
            self._tell(study, form, lambda: run.begun(model))
        if start == "dense model" and study == "main" and form.form is rivals.BLOCK_TERMS:
            self._tell(study, form, lambda: run.calibrated(model))
        if is_trained:
            self._tell(study, form, lambda: run.measured(model))

    def _is_trained(self, run: Run, form: Form) -> bool:
        return form.form is not rivals.ROUNDED or run.size in self.settings.rounded_trained

    def _noise(self, run: Run, forms: Sequence[Form], noise: Noise) -> None:
        run.dense = self.dense_choice(run)
        for form in forms:
            for start in form.starts if self._is_trained(run, form) else ():
                model = Model(form, start, self._choice(run, "noise", form, start))
                self._tell("noise", form, lambda model=model: run.noisy(model, noise))

    def _tell(self, study: Study, form: Form, known: Callable[[], Measured | Noisy]) -> None:
        """Tell what is known, or nothing where that is not made."""
        with suppress(MissingError):
            self.tell(study, replace(known(), form=form.name))

    def _choice(self, run: Run, study: Study, form: Form, start: Start) -> Choice:
        """What a model is trained with; ranks and orders as the block terms that the task is about."""
        return self._chosen(run, block_terms(run.task) if study in ("ranks", "orders") else form, start)

    def dense_choice(self, run: Run) -> Choice:
        """What the dense model is trained with."""
        return self._chosen(run, Form(), "")

    def _chosen(self, run: Run, form: Form, start: Start) -> Choice:
        """What is best on the examples held back, for the seed that is searched on."""
        searched = self.run(run.task.name, run.size, SEARCH_SEED)
        if form.form is not None:
            searched.dense = self.dense_choice(searched)
        candidates = self._candidates(run, form, start)
        if len(candidates) == 1:
            return candidates[0]
        metrics: dict[Choice, float] = {}
        busy: BusyError | None = None
        for choice in candidates:
            try:
                curve = searched.trained(Model(form, start, choice)).curve
            except BusyError as error:
                busy = error
                continue
            if curve:
                metrics[choice] = self._best(run, curve)
        if busy is not None:
            raise busy
        if not metrics:
            raise BTCompressError(f"{form.name}: training diverged at every learning rate. Give smaller ones.")
        higher = run.task.metric.higher_is_better
        best = max(metrics, key=lambda choice: metrics[choice] if higher else -metrics[choice])
        for choice in candidates:
            if choice != best:
                searched.discard(Model(form, start, choice))
        return best

    def _best(self, run: Run, curve: Sequence[float]) -> float:
        return max(curve) if run.task.metric.higher_is_better else min(curve)

    def _candidates(self, run: Run, form: Form, start: Start) -> list[Choice]:
        search = self.settings.search(run.size)
        rate = form.training(run.task, start).learning_rate
        if form.form is None:
            return [Choice(rate * factor, decay) for factor in search.dense for decay in search.decays]
        factors = search.dense if form.is_dense_lstm else search.others
        return [Choice(rate * factor) for factor in factors]


def _of_ranks(run: Run, name: str, request: ShapeRequest) -> Form:
    """Block terms of a shape, by a name of their own."""
    return Form(name, rivals.BLOCK_TERMS, target_shape(run.task, outline(run.task), request))
