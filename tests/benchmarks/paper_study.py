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

from paper_forms import Form, Start, block_terms, of_request
from paper_records import WAIT, BusyError, Measured, MissingError, Noisy
from paper_runs import Model, Run
from paper_settings import OrderForm, Settings, SizeName, Tasks

from btcompress.demo import Noise, Training, rivals
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
            self._runs[key] = Run(
                self.tasks[size][task], size, seed, folder, self.on_epoch, self._close_all_but, making=self.making
            )
        return self._runs[key]

    def do(self, asked: Asked) -> list[str]:
        """Do what is asked for and not done; what another process is at is put off.

        Returns:
            What could not be done, and why.
        """
        left, failures = list(self.items(asked)), []
        while left:
            for item in left:
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
            early = {run: [Form(), *self._forms(run, asked.forms)] for run in some}
            late = {run: [form for form in forms if form.form is rivals.ROUNDED] for run, forms in early.items()}
            for run in some if "main" in asked.studies else ():
                yield from self._each(run, "main", [form for form in early[run] if form not in late[run]])
            for run in some:
                yield from self._others(run, asked, early[run])
            for run in some if "main" in asked.studies else ():
                yield from self._each(run, "main", late[run])
            for run in some if "noise" in asked.studies else ():
                yield from self._noises(run, late[run])

    def _others(self, run: Run, asked: Asked, forms: Sequence[Form]) -> Iterator[Item]:
        """What is done once all tasks have their models."""
        name = f"{run.task.name}-{run.size}"
        if "noise" in asked.studies:
            yield from self._noises(run, [form for form in forms if form.form is not rivals.ROUNDED])
        if "ranks" in asked.studies and name in asked.ranks_of:
            yield from self._each(run, "ranks", self._ranks(run))
        if "orders" in asked.studies and name == self.settings.orders_of:
            yield from self._each(run, "orders", self._orders(run))

    def _noises(self, run: Run, forms: Sequence[Form]) -> Iterator[Item]:
        for noise in self.settings.noises if forms else ():
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
        return [of_request(run.task, f"N={n} R={r}", ShapeRequest(n, r, **modes)) for n, r in self.settings.ranks]

    def _orders(self, run: Run) -> list[Form]:
        forms = []
        for each in self.settings.orders:
            request = ShapeRequest(*self.settings.order_ranks, each.in_modes, each.out_modes)
            form = of_request(run.task, _order_name(each), request)
            if form.target is None or form.target.n_params != each.n_params:
                raise BTCompressError(f"{form} was published to have {each.n_params} parameters.")
            forms.append(form)
        return forms

    def _measure(self, run: Run, study: Study, form: Form, start: Start) -> None:
        run.dense = self._dense(run)
        model = self._model(run, study, form, start)
        if start == "dense model":
            self._tell(study, form, lambda: run.begun(model))
        if start == "dense model" and study == "main" and form.form is rivals.BLOCK_TERMS:
            self._tell(study, form, lambda: run.calibrated(model))
        if model.training.epochs:
            self._tell(study, form, lambda: run.measured(model))

    def _noise(self, run: Run, forms: Sequence[Form], noise: Noise) -> None:
        run.dense = self._dense(run)
        for form in forms:
            for start in form.starts:
                model = self._model(run, "noise", form, start)
                if model.training.epochs:
                    self._tell("noise", form, lambda model=model: run.noisy(model, noise))

    def _tell(self, study: Study, form: Form, known: Callable[[], Measured | Noisy]) -> None:
        """Tell what is known, or nothing where that is not made."""
        with suppress(MissingError):
            self.tell(study, replace(known(), form=form.name))

    def _model(self, run: Run, study: Study, form: Form, start: Start) -> Model:
        """A model, trained as was chosen; ranks and orders begin with how the task's block terms are trained."""
        training = self._chosen(run, block_terms(run.task) if study in ("ranks", "orders") else form, start)
        if study == "orders":
            (rate,) = (each.rate for each in self.settings.orders if form.name == _order_name(each))
            training = replace(training, learning_rate=training.learning_rate * rate)
        return Model(form, start, training)

    def _dense(self, run: Run) -> Training:
        """How the dense model is trained."""
        return self._chosen(run, Form(), "")

    def _chosen(self, run: Run, form: Form, start: Start) -> Training:
        """How a form is trained: as is best on the examples held back, for the seed that is searched on."""
        search, size = self.settings.search(run.size), run.task.size
        training, rates = size.tuning, search.others
        if form.is_dense_lstm:
            training, rates = size.dense, search.dense
        elif form.form is rivals.ROUNDED:
            epochs = dict(self.settings.rounded_epochs)[run.size]
            training, rates = replace(size.dense, epochs=epochs), self.settings.rounded_rates
        elif start == "from scratch":
            training = size.scratch
        candidates = [replace(training, learning_rate=training.learning_rate * rate) for rate in rates]
        best = self._best_of(run, form, start, candidates)
        others = [decay for decay in search.decays if decay != best.weight_decay]
        if form.form is None and others:
            best = self._best_of(run, form, start, [best, *(replace(best, weight_decay=decay) for decay in others)])
        return best

    def _best_of(self, run: Run, form: Form, start: Start, candidates: Sequence[Training]) -> Training:
        """The candidate whose model has the best metric; files of the others are not kept."""
        if len(candidates) == 1 or not candidates[0].epochs:
            return candidates[0]
        searched = self.run(run.task.name, run.size, SEARCH_SEED)
        if form.form is not None:
            searched.dense = self._dense(searched)
        metrics: dict[Training, float] = {}
        busy: BusyError | None = None
        for training in candidates:
            try:
                curve = searched.trained(Model(form, start, training)).curve
            except BusyError as error:
                busy = error
                continue
            if curve:
                metrics[training] = max(curve) if run.task.metric.higher_is_better else -min(curve)
        if busy is not None:
            raise busy
        if not metrics:
            raise BTCompressError(f"{form.name}: training diverged at every learning rate. Give smaller ones.")
        best = max(metrics, key=lambda training: metrics[training])
        for training in candidates:
            if training != best:
                searched.discard(Model(form, start, training))
        return best


def _order_name(form: OrderForm) -> str:
    return f"d={len(form.in_modes)}"
